"""Policies as programs: one file that needs neither this library nor TorchRL to act.

Both formats map ``observation`` ``[B, n, o]`` float32, and ``action_mask`` ``[B, n, A]`` bool where the task has one,
to ``action``, what is executed: ``[B, n, a]`` float32 within the bounds, or ``[B, n]`` int64, a legal one. ``B`` is
free. A normalization of observations lies inside. What the file knows of itself is JSON under :data:`METADATA`.

A policy with memory takes, behind the observation, its ``memory`` ``[B, n, S]`` float32, whatever it is where an
episode begins, and ``is_init`` ``[B, 1]`` bool, true there; it also returns the ``next_memory``, to be given with the
next observation.

With torch alone::

    files = {"torchrl_marl_offline.json": ""}
    act = torch.export.load("policy.pt2", extra_files=files).module()
    action, task = act(observation), json.loads(files["torchrl_marl_offline.json"])["spec"]

With ONNX Runtime alone::

    session = onnxruntime.InferenceSession("policy.onnx")
    (action,) = session.run(["action"], {"observation": observation})
    task = json.loads(session.get_modelmeta().custom_metadata_map["torchrl_marl_offline.json"])["spec"]
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import set_exploration_type

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.exploration import EXPLORATION, Mode
from torchrl_marl_offline.core.files import replacing_file
from torchrl_marl_offline.core.layout import ACTION, ACTION_MASK, GROUP, IS_INIT, OBSERVATION, TaskSpec, next_key
from torchrl_marl_offline.core.paths import user_path
from torchrl_marl_offline.core.ranges import OPSET
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.modules.history import encoder_of
from torchrl_marl_offline.training.run.saved_policies import BUILDERS, load_policy

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Format = Literal["torch", "onnx"]
SUFFIXES: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx"}
METADATA = "torchrl_marl_offline.json"
"""Name of the extra file in a ``.pt2``, and of the metadata property in an ``.onnx``."""
ONNX_OPSET = 18
KEYS = {
    "observation": OBSERVATION,
    "action_mask": ACTION_MASK,
    "memory": (GROUP, "policy_memory"),
    "is_init": IS_INIT,
}
"""Where the inputs of an exported policy stand in the policy's own rows."""


class ExecutedAction(nn.Module):
    """A policy as a function of tensors, from what the agents see to what they do.

    Args:
        policy: reads and writes the library's keys.
        mode: ``"mode"`` executes the policy's deterministic action, ``"sample"`` draws from it.

    Shape:
        ``[B, n, o]`` (and a mask ``[B, n, A]``) to ``[B, n, a]`` or ``[B, n]``.
    """

    def __init__(self, policy: TensorDictModuleBase, *, mode: Mode = "mode") -> None:
        super().__init__()
        self.policy, self.mode = policy, mode

    def forward(self, observation: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the action."""
        td = TensorDict({OBSERVATION: observation}, observation.shape[:1])
        if action_mask is not None:
            td.set(ACTION_MASK, action_mask)
        with set_exploration_type(EXPLORATION[self.mode]):
            return self.policy(td).get(ACTION)


class RememberingAction(ExecutedAction):
    """A policy with memory as a function of tensors, one step of it.

    Shape:
        observation ``[B, n, o]``, memory ``[B, n, S]`` and ``is_init`` ``[B, 1]`` (and a mask ``[B, n, A]``) to the
        action and the memory after the step.
    """

    def forward(
        self, observation: Tensor, memory: Tensor, is_init: Tensor, action_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the action and the next memory."""
        key = KEYS["memory"]
        td = TensorDict({OBSERVATION: observation, key: memory, IS_INIT: is_init}, observation.shape[:1])
        if action_mask is not None:
            td.set(ACTION_MASK, action_mask)
        with set_exploration_type(EXPLORATION[self.mode]):
            out = self.policy(td)
        return out.get(ACTION), out.get(next_key(key))


@dataclass(frozen=True)
class ExportMetadata:
    """What an exported file says of itself, as JSON.

    Attributes:
        spec: :meth:`TaskSpec.to_dict` of the task.
        inputs: names of the inputs, in their order.
        outputs: names of the outputs.
        mode: which action it is, ``"mode"`` or ``"sample"``.
        agent: whose policy it is, where it is one agent's; ``None`` of the team's.
        build: name and options of the function that built the policy.
        policy: what the policy's file was told, for instance its step.
        versions: of the library and of torch.
    """

    spec: dict[str, Any]
    inputs: list[str]
    outputs: list[str]
    mode: str
    agent: int | None
    build: dict[str, Any]
    policy: dict[str, Any]
    versions: dict[str, str]


@checked
def export_policy(
    policy: TensorDictModuleBase | str | Path,
    path: str | Path,
    *,
    format: Format = "torch",
    mode: Mode = "mode",
    opset: Annotated[int, OPSET, ReadWith("format", "onnx")] = ONNX_OPSET,
) -> Path:
    """Write a policy as a program for a batch of any size, in one step.

    What is written is the trace of the policy itself, so that nothing is said twice. It runs on the CPU.

    Args:
        policy: built by one of :data:`~.policies.BUILDERS`; or a file of :func:`~torchrl_marl_offline.save_policy`, or
            a run's folder that holds one.
        path: the file; ``.pt2`` and ``.onnx`` are custom.
        format: ``"torch"`` (a :class:`torch.export.ExportedProgram`) or ``"onnx"``.
        mode: ``"mode"`` executes the policy's deterministic action, ``"sample"`` draws from it, with the runtime's
            random numbers.
        opset: of ONNX; refused for torch, which reads none.

    Returns:
        The path.

    Raises:
        FileNotFoundError: there is no policy at the path.
        ImportError: ONNX is asked for and not installed.
        TypeError: the policy does not say for which task it was built.
        ValueError: an unknown format or mode, or a damaged file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> spec = TaskSpec(n_agents=3, observation_size=18, state_size=54, action_size=2)
        >>> with TemporaryDirectory() as folder:
        ...     path = export_policy(make_actor(spec, hidden=(8,)), f"{folder}/policy.pt2")
        ...     act = torch.export.load(path).module()
        >>> act(torch.zeros(5, 3, 18)).shape
        torch.Size([5, 3, 2])
    """
    if format not in SUFFIXES:
        raise ValueError(f"format must be one of {', '.join(SUFFIXES)}, got {format!r}.")
    if mode not in get_args(Mode):
        raise ValueError(f'mode must be "mode" or "sample", got {mode!r}.')
    policy, told = loaded_with_metadata(policy)
    arguments = example_inputs(TaskSpec(**policy.build["spec"]), 2, memory_size=memory_size_of(policy))
    executed = (ExecutedAction if encoder_of(policy) is None else RememberingAction)(policy, mode=mode)
    return write_program(executed, arguments, path, format=format, opset=opset, told=told)


def write_program(
    action: ExecutedAction,
    arguments: dict[str, Tensor],
    path: str | Path,
    *,
    format: Format,
    opset: int,
    told: dict[str, Any],
    agent: int | None = None,
) -> Path:
    """Trace what a policy executes, write it with its metadata, and return the path.

    Args:
        action: of a policy that says how it was built.
        arguments: example inputs by name, ``[B, ...]``.
        path: the file.
        format: of the file.
        opset: of ONNX.
        told: what the policy's file was told.
        agent: whose policy it is; ``None`` of the team's.
    """
    build = action.policy.build
    outputs = ["action", "next_memory"] if isinstance(action, RememberingAction) else ["action"]
    metadata = ExportMetadata(
        spec=build["spec"],
        inputs=list(arguments),
        outputs=outputs,
        mode=action.mode,
        agent=agent,
        build={"builder": build["builder"], "options": build["options"]},
        policy=told,
        versions={name: version(name) for name in ("torchrl-marl-offline", "torch")},
    )
    text = json.dumps(asdict(metadata))
    with quiet():
        program = trace(action, arguments)
        is_torch = format == "torch"
        content = _torch_file(program, text) if is_torch else _onnx_file(program, arguments, outputs, text, opset)
    with replacing_file(path) as temporary:
        temporary.write_bytes(content)
    return user_path(path)


def memory_size_of(policy: TensorDictModuleBase) -> int | None:
    """Return the width of each agent's memory, or ``None`` of a policy without."""
    encoder = encoder_of(policy)
    return None if encoder is None else encoder.memory_size


def example_inputs(
    spec: TaskSpec, rows: int, *, generator: torch.Generator | None = None, memory_size: int | None = None
) -> dict[str, Tensor]:
    """Return random inputs of an exported policy by name; every mask has a legal action.

    Args:
        spec: the task.
        rows: the batch size ``B``.
        generator: of the random numbers.
        memory_size: of a policy with memory.
    """
    inputs = {"observation": torch.randn(rows, spec.n_agents, spec.observation_size, generator=generator)}
    if memory_size is not None:
        inputs["memory"] = torch.randn(rows, spec.n_agents, memory_size, generator=generator)
        inputs["is_init"] = torch.rand(rows, 1, generator=generator) < 0.5
    if spec.discrete and spec.has_action_mask:
        score = torch.rand(rows, spec.n_agents, spec.action_size, generator=generator)
        inputs["action_mask"] = (score < 0.5) | (score == score.amin(-1, keepdim=True))
    return inputs


def trace(action: ExecutedAction, arguments: dict[str, Tensor]) -> ExportedProgram:
    """Return the program of a policy's action for any batch size; the policy is left as it is.

    Args:
        action: what the policy executes.
        arguments: example inputs by name, ``[B, ...]``.
    """
    frozen = copy.deepcopy(action).to("cpu").eval().requires_grad_(False)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            frozen,
            tuple(arguments.values()),
            dynamic_shapes=tuple({0: batch} for _ in arguments),
            strict=False,
        )
    return program.run_decompositions({})  # leaves out what only training needs


def loaded_with_metadata(policy: TensorDictModuleBase | str | Path) -> tuple[TensorDictModuleBase, dict[str, Any]]:
    """Return a policy that says how it was built, read where it is a path, and what its file was told.

    Raises:
        TypeError: it does not say for which task it was built.
    """
    if isinstance(policy, (str, Path)):
        saved = load_policy(policy)
        return saved.policy, saved.metadata
    if not hasattr(policy, "build"):
        raise TypeError(
            f"A {type(policy).__name__} does not say for which task it was built; only policies of "
            f"{', '.join(BUILDERS)} can be exported."
        )
    return policy, {}


def _torch_file(program: ExportedProgram, metadata: str) -> bytes:
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={METADATA: metadata})
    return content.getvalue()


def _onnx_file(
    program: ExportedProgram, inputs: dict[str, Tensor], outputs: list[str], metadata: str, opset: int
) -> bytes:
    require_onnx()
    model = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=tuple({0: "batch"} for _ in inputs),
    )
    model.model.metadata_props[METADATA] = metadata
    return model.model_proto.SerializeToString()


def require_onnx() -> None:
    """Refuse to export to ONNX where its exporter is not installed.

    Raises:
        ImportError: with the remedy.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Exporting to ONNX needs onnx and onnxscript; install them with pip install onnx onnxscript, or use "
            "format='torch'."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what the exporters say of other libraries and of their own deprecated calls."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
