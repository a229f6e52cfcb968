"""Code of a user's as a type checker sees it; ``test_types.py`` checks it, nobody runs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import assert_type

from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.objectives import SoftUpdate

from torchrl_marl_offline import (
    AWR,
    IQL,
    OMAR,
    ActorCritic,
    Algorithm,
    OfflineDataset,
    OfflineMARLLoss,
    Recipe,
    TaskSpec,
    Trainer,
    collect,
    evaluate,
    load_dataset,
    make_algorithm,
    make_critic,
    make_env,
    make_loss,
    setting,
)
from torchrl_marl_offline.evaluation import Evaluation
from torchrl_marl_offline.objectives.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Mine(ActorCritic, name="typed_use"):
    strength: float = setting(1.0, member=True)

    def rules(self, *, discrete: bool) -> dict[str, object]:
        return {"value_learning": IQL(0.8), "extraction": AWR(self.strength)}


def use(folder: Path) -> None:
    env = make_env("mpe/simple_spread", num_envs=4, seed=0)
    assert_type(env, EnvBase)
    data = collect(env, episodes=10, seed=0)
    assert_type(data, OfflineDataset)
    assert_type(load_dataset(folder), OfflineDataset)
    assert_type(data.spec, TaskSpec)
    recipe = Recipe(hidden=(64, 64), expectile=0.7)
    assert_type(recipe.expectile, float)
    loss = recipe.build(data.spec)
    assert_type(loss, OfflineMARLLoss)
    assert_type(make_loss(data.spec, algorithm="omar"), OfflineMARLLoss)
    assert_type(OMAR(rectification=0.7).loss(None, make_critic(data.spec)), OfflineMARLLoss)
    assert_type(make_algorithm("recipe", gamma=0.9), Algorithm)
    batch = loss.batch(data.data[:8])
    assert_type(batch, Batch)
    assert_type(batch.live.total_min, Tensor)
    assert_type(batch.advantage("joint"), Tensor)
    assert_type(batch.counts(batch.action), Tensor | None)
    SoftUpdate(loss, tau=0.1)
    trainer = Trainer(loss, data.replay_buffer(batch_size=64, seed=0), steps=100, output=folder)
    assert_type(trainer.save(), Path | None)
    found = evaluate(loss.actor_network, env, episodes=10, seed=0)
    assert_type(found, Evaluation)
