"""MA-MuJoCo: robots whose joints are shared out among agents, batched; made by ``make_env("mamujoco/...")``."""
