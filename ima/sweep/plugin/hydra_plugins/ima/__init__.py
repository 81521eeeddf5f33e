# A part of Hydra's namespace package, found by its folder on sys.path: hydra/launcher=ima and hydra/sweeper=ima.
# Hydra registers classes by the module that defines them, and executes this file before sys.modules knows it.
from hydra.core.config_store import ConfigStore

from ima.sweep import launcher, sweeper


class PoolLauncher(launcher.PoolLauncher):
    pass


class GridSweeper(sweeper.GridSweeper):
    pass


for group, name, options in (
    ("hydra/launcher", "PoolLauncher", {"num_parallel": 1, "keep_going": True}),
    ("hydra/sweeper", "GridSweeper", {"params": {}, "points": [], "evaluations": [], "script": "train"}),
):
    ConfigStore.instance().store(
        group=group, name="ima", node={"_target_": f"hydra_plugins.ima.{name}", **options}, provider="ima"
    )
