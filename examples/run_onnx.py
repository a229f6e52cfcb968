"""Act with exported policies by ONNX Runtime and NumPy alone: no torch, no TorchRL, nothing of this library.

    python examples/run_onnx.py runs/my-run/policy_agent_0.onnx runs/my-run/policy_agent_1.onnx
    python examples/run_onnx.py runs/my-run/policy.onnx

The files are those of ``marl-offline export RUN --per-agent``. A robot loads its own file, once, and calls ``decide``
at each step; here the observation is zeros, and every action is legal.
"""

import json
import os
import sys

import numpy as np
import onnxruntime


def load(path):
    """Return a policy and what its file says of it: the task's sizes and bounds, and whose policy it is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # small networks are fastest on one
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["torchrl_marl_offline.json"])


def decide(session, observation, action_mask=None, memory=None):
    """Return the action for an observation ``[o]`` (of a team ``[n, o]``), and what to give back as ``memory``.

    That is None of a policy without memory, and None is given where an episode begins.
    """
    inputs = {"observation": np.asarray(observation, np.float32)[None]}  # a batch of one
    if action_mask is not None:
        inputs["action_mask"] = np.asarray(action_mask, bool)[None]
    for each in session.get_inputs():
        if each.name == "memory":
            inputs["memory"] = (np.zeros(each.shape[1:], np.float32) if memory is None else memory)[None]
            inputs["is_init"] = np.array([[memory is None]])
    action, *after = session.run(None, inputs)
    return action[0], after[0][0] if after else None


if len(sys.argv) < 2:
    sys.exit(f"Name one or more files that were exported: python {sys.argv[0]} policy_agent_0.onnx ...")
if missing := [path for path in sys.argv[1:] if not os.path.isfile(path)]:
    sys.exit(f"There is no file {missing[0]}; make it by marl-offline export RUN.")
for path in sys.argv[1:]:
    policy, about = load(path)
    shapes = {each.name: each.shape[1:] for each in policy.get_inputs()}
    mask = np.ones(shapes["action_mask"]) if "action_mask" in shapes else None
    action, memory = decide(policy, np.zeros(shapes["observation"]), mask)
    whose = "team" if about["agent"] is None else f"agent {about['agent']}"
    print(f"{path}: {whose}, observation {shapes['observation']}, action {np.round(action, 4).tolist()}")
