"""The recipe from TorchRL's own parts, for a pipeline of your own: buffer, loss, target update, optimizer."""

from __future__ import annotations

import torch
from torchrl.objectives import SoftUpdate

import torchrl_marl_offline as marl
from torchrl_marl_offline.envs import MixedSkill, SpreadController

torch.manual_seed(0)
torch.set_num_threads(1)  # small networks are fastest on one

# Data: three ways to play, one drawn per episode. Any TensorDict in the key layout will do.
env = marl.make_env("mpe/simple_spread", num_envs=500)
skills = [
    SpreadController("fixed_assignment", offset=offset, noise=0.3) for offset in ((0, 0), (0.6, 0.3), (0.6, -0.3))
]
dataset = marl.collect(env, MixedSkill(skills), episodes=1000, seed=0)
print(f"data     return {dataset.episode_returns().mean():.1f}")

# Networks: any TensorDictModules with these keys will do, TorchRL's QMixer and VDNMixer included.
spec, hidden = dataset.spec, (64, 64)
actor = marl.make_actor(spec, hidden=hidden, scale="learned")
critic = marl.make_critic(spec, decomposition="mixer", hidden=hidden)
value = marl.make_value(spec, decomposition="mixer", hidden=hidden)

# The loss is a TorchRL LossModule: its networks are functional, its targets are updated by TorchRL's SoftUpdate.
loss = marl.OfflineMARLLoss(
    actor,
    critic,
    value,
    value_learning=marl.IQL(expectile=0.7),
    extraction=marl.AWR(temperature=3.0, advantage="joint"),
    value_norm=marl.ScaleInvariantValueNorm(),
).make_value_estimator(gamma=0.95)
updater = SoftUpdate(loss, tau=0.005)
optimizer = torch.optim.Adam(loss.parameters(), lr=2e-3)
buffer = dataset.replay_buffer(batch_size=256, seed=0, keys=loss.in_keys)  # a TensorDictReplayBuffer

for step in range(1, 601):
    terms = loss(buffer.sample())
    optimizer.zero_grad()
    sum(term for name, term in terms.items() if name.startswith("loss_")).backward()
    optimizer.step()
    updater.step()
    if step % 200 == 0:
        played = marl.evaluate(actor, env, episodes=500, seed=1)
        print(
            f"step {step}  return {played.mean:.1f}  |Q| {terms['qvalue_abs']:.1f}  σ {terms['value_norm_scale']:.2f}"
        )
