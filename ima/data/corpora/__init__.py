"""Readers of published corpora in their official file formats; one class per family of formats.

Which files and media folders belong to which split is a table in the config (conf/data/<corpus>.yaml), so that another
layout of the same files is a change of config.
"""
