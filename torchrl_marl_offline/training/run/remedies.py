"""What to do where a run's numbers say that something is wrong: the alarm, errors and diagnoses say the same."""

from __future__ import annotations

AGAINST_DIVERGENCE = (
    "Normalize the actor's objective (BRAC(normalize=True)), keep layer norms in critic and mixer, train the mixer, "
    "stay closer to the data (a larger alpha), or bound the targets (max_next_value=)."
)
"""Values beyond what the rewards allow, or on their way there."""

AGAINST_NON_FINITE = (
    "Lower the learning rate, clip the gradient, or normalize the actor's objective (BRAC(normalize=True))."
)
AGAINST_OVERESTIMATION = (
    "Use SARSA or IQL, which ask for recorded actions alone, stay closer to the data (a larger alpha), or bound the "
    "targets (max_next_value=)."
)
AGAINST_FEW_WEIGHTS = "Lower the temperature, or take AWR(weights='bounded')."
AGAINST_LEAVING_THE_DATA = "Clone more (a larger alpha), or extract by AWR, which stays within the recorded actions."
AGAINST_DISAGREEMENT = (
    "Extract by the team's advantage (AWR(advantage='joint')), or take a decomposition that can express the agents' "
    "dependence (mixer, nonmonotonic, centralized)."
)
AGAINST_NO_CREDIT = (
    "Look at whether this agent's actions change the reward at all; if they do, take another decomposition or train "
    "longer."
)
