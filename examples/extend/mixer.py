"""A mixer of your own, known as a decomposition. Run: python examples/extend/mixer.py

Elsewhere: marl-offline --import examples/extend/mixer.py study run STUDY.toml, with decomposition = "weakest_link".
"""

import torch
from torchrl.modules.models.multiagent import Mixer

from torchrl_marl_offline import make_loss, register_mixer


class WeakestLink(Mixer):
    """The team is worth as much as its weakest agent, smoothly: monotonic, without the state."""

    def __init__(self, n_agents):
        super().__init__(n_agents=n_agents, needs_state=False, state_shape=None, device="cpu")
        self.sharpness = torch.nn.Parameter(torch.zeros(()))

    def mix(self, chosen_action_value, state=None):
        """Map ``[*B, n, 1]`` to ``[*B, 1]``."""
        weights = (-self.sharpness.exp() * chosen_action_value.detach()).softmax(-2)
        return (weights * chosen_action_value).sum(-2)


register_mixer("weakest_link", lambda spec: WeakestLink(spec.n_agents))

if __name__ == "__main__":
    from torchrl_marl_offline import Trainer, collect, make_env

    data = collect(make_env("games/xor", num_envs=8), steps=512, seed=0)
    loss = make_loss(data.spec, decomposition="weakest_link", hidden=(16,))
    Trainer(loss, data.replay_buffer(batch_size=64, seed=0), steps=50, progress=False).train()
    print(type(loss.mixer_network.module).__name__, [name for name, _ in loss.named_parameters() if "mixer" in name])
