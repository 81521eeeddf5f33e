"""What a person may write: typed roots, composition, signatures, validation; no torch."""
