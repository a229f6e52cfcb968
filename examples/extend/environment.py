"""An environment of your own, from PettingZoo or TorchRL. Run: python examples/extend/environment.py

Elsewhere: marl-offline --import examples/extend/environment.py evaluate RUN --env own/navigation
"""

from torchrl_marl_offline import from_torchrl, register_environment


def make(*, num_envs, device, seed, **options):
    """Return ``num_envs`` environments as one; options are those of make_env."""
    from torchrl.envs import VmasEnv

    env = VmasEnv(scenario="navigation", num_envs=num_envs, device=device, n_agents=2, **options)
    return from_torchrl(env, max_steps=50, seed=seed)


register_environment("own/navigation", make)

if __name__ == "__main__":
    from torchrl_marl_offline import collect, make_env

    data = collect(make_env("own/navigation", num_envs=4), steps=400, seed=0)
    print(data.spec, len(data.data))
