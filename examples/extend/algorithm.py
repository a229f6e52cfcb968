"""An algorithm of your own, as a dataclass of its settings. Run: python examples/extend/algorithm.py

Elsewhere: marl-offline --import examples/extend/algorithm.py study run STUDY.toml, with algorithm = "quiet".
"""

from dataclasses import dataclass
from typing import Annotated

from torchrl_marl_offline import AWR, SARSA, ActorCritic, make_loss, setting
from torchrl_marl_offline.core.ranges import NON_NEGATIVE


@dataclass(frozen=True, kw_only=True)
class Quiet(ActorCritic, name="quiet"):
    """One step of policy improvement: the value of the data's own policy, and weighted regression.

    Args:
        strength: how strongly better actions are preferred; members of a population may differ in it.
    """

    decomposition: str = "vdn"
    strength: Annotated[float, NON_NEGATIVE] = setting(2.0, member=True)

    def rules(self, *, discrete):
        """Say what it is."""
        return {"value_learning": SARSA(), "extraction": AWR(self.strength, "joint")}


if __name__ == "__main__":
    from torchrl_marl_offline import Trainer, collect, make_env

    data = collect(make_env("games/xor", num_envs=8), steps=512, seed=0)
    loss = make_loss(data.spec, algorithm="quiet", hidden=(16,), strength=3.0)
    Trainer(loss, data.replay_buffer(batch_size=64, seed=0), steps=50, progress=False).train()
    print(Quiet(strength=3.0), float(loss.temperature))
