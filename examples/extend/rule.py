"""A rule of your own: implicit Q-learning with heads that agree. Run: python examples/extend/rule.py

Elsewhere: marl-offline --import examples/extend/rule.py study run STUDY.toml, with value_learning = "cautious".
"""

from dataclasses import dataclass

from torchrl_marl_offline import IQL, make_loss


@dataclass(frozen=True)
class Cautious(IQL, name="cautious"):
    """IQL whose critic also pays for its heads being apart."""

    doubt: float = 0.5
    metrics = ("critic_penalty",)

    def coefficients(self):
        """The doubt is saved with the loss, and may be scheduled as ``loss.doubt = 0.1``."""
        return super().coefficients() | {"doubt": self.doubt}

    def critic_penalty(self, batch):
        """Return what is added to the critic's term, ``[*B, k]``: how far its heads are apart."""
        return batch.coefficient("doubt") * batch.live.total.var(-1, correction=0)


if __name__ == "__main__":
    from torchrl_marl_offline import Trainer, collect, make_env

    data = collect(make_env("games/xor", num_envs=8), steps=512, seed=0)
    loss = make_loss(data.spec, value_learning="cautious", hidden=(16,))
    Trainer(loss, data.replay_buffer(batch_size=64, seed=0), steps=50, progress=False).train()
    print(loss.value_learning, float(loss.doubt))
