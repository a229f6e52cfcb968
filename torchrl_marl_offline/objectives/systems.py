"""Systems of the field as presets of :class:`OfflineMARLLoss`: a rule of value learning and one of extraction each.

Each says its equations, its paper, the published settings and what differs from it. Every decomposition and every
option of :class:`OfflineMARLLoss` goes with each, unless it says otherwise: "X + Mix" is a critic with a mixer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from tensordict import unravel_key
from tensordict.nn import TensorDictModuleBase

from torchrl_marl_offline.core.checked import checked
from torchrl_marl_offline.core.ranges import FEW, NON_NEGATIVE, OPEN_UNIT, POSITIVE, UNIT
from torchrl_marl_offline.core.relevance import ReadWith
from torchrl_marl_offline.modules.sequential import BEHAVIOUR_LOGITS
from torchrl_marl_offline.objectives.ascent import TD3BC, PolicyGradient
from torchrl_marl_offline.objectives.bcq import BCQ, BCQDistillation, VAELearning
from torchrl_marl_offline.objectives.conservative import CQL
from torchrl_marl_offline.objectives.extraction import AWR
from torchrl_marl_offline.objectives.flow import FlowDistillation, FlowMatching
from torchrl_marl_offline.objectives.in_sample import ICQ, OMAC, OMIGA
from torchrl_marl_offline.objectives.loss import OfflineMARLLoss
from torchrl_marl_offline.objectives.omar import OMAR
from torchrl_marl_offline.objectives.presets import Critic
from torchrl_marl_offline.objectives.samplers import ActionSampler, SoftmaxSampler
from torchrl_marl_offline.objectives.score import ScoreMatching, ScoreRegularized, SequentialCloning
from torchrl_marl_offline.objectives.value_learning import IQL, TD


class MATD3BCLoss(OfflineMARLLoss):
    r"""MA-TD3+BC: TD3+BC (Fujimoto and Gu 2021, arXiv:2106.06860) for every agent, as in the comparison of OMAR.

    .. math::
        y = r + \gamma \min_k \bar Q^k(s', \pi(o') + \epsilon), \qquad
        -\lambda\, Q^1(s, \pi(o)) + \|\pi_a(o_a) - u_a\|^2, \qquad \lambda = \alpha / \mathbb{E}|Q^1|

    (:class:`TD` with ``noise``, :class:`TD3BC`.) With ``others="policy"``, a mixer and ``max_next_value`` this is B3C
    (Kim and Sycara 2025, arXiv:2501.18138): the next value is clipped at the data's largest return, and a larger
    :math:`\alpha` is affordable.

    Published: :math:`\alpha` 2.5; noise 0.2, clipped at 0.5; the actor and the targets are updated at every second step
    of the critic; states are normalized. Independent or centralized critics.

    What differs: states are not normalized (``make_actor(observation_norm=dataset.observation_statistics())``
    normalizes the policies'); the loss has no rhythm (``Trainer(actor_every=2)`` has the published one); the next
    action is the current policy's, not a target policy's.
    Continuous actions only, and an actor whose mode is not clipped: ``make_actor(distribution="tanh_gaussian")``.

    Options: those of :class:`OfflineMARLLoss`, and the rules'.
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        *,
        alpha: Annotated[float, NON_NEGATIVE] = TD3BC.alpha,
        noise: Annotated[float, NON_NEGATIVE] = 0.2,
        noise_clip: Annotated[float, NON_NEGATIVE, ReadWith("noise", above=0)] = TD.noise_clip,
        others: Literal["data", "policy"] = TD3BC.others,
        **options,
    ) -> None:
        learning, extraction = TD(noise, noise_clip), TD3BC(alpha=alpha, others=others)
        super().__init__(actor, critic, value_learning=learning, extraction=extraction, **options)


class MACQLLoss(OfflineMARLLoss):
    r"""MA-CQL: conservative Q-learning (Kumar et al. 2020, arXiv:2006.04779) on MATD3, as in the comparison of OMAR.

    .. math::
        L_{TD} + \alpha\, \mathbb{E}\Big[\log \sum_{u_a} e^{Q_a(o_a, u_a)} - Q_a(o_a, u_a)\Big], \qquad
        -Q^1_a(o_a, \pi_a(o_a))

    (OMAR's eq. 1; :class:`CQL`, :class:`PolicyGradient`.)

    Published (OMAR, appendix C.1.2): :math:`\alpha` of 0.1, 0.5, 1 or 5, by task; two hidden layers of 64; learning
    rate 0.01; targets' rate 0.01; batches of 1024; 10 sampled actions. The text has :math:`\gamma = 0.99`, the released
    code 0.95; by the latter 2,000 updates of spread (6,000 of its random set) and tag (1,000 of its medium-replay set),
    1,000 of world.

    What differs: the released code samples uniform actions alone on the particle environments (on HalfCheetah, the
    policy's here and next beside them, with importance weights; here always uniform ones and the policy's here), adds
    :math:`10^{-3} \|\pi\|^2` to the actor's term, clips the norms of each agent's two gradients at 0.5, and has target
    policies but no noise on their actions; the noise is algorithm 1's, its size TD3's. It normalizes the inputs of all
    networks by the batch, and so does ``make_loss(spec, algorithm="cql")`` where actions are continuous; a loss that is
    put together by hand needs ``batch_norm=True`` of :func:`~torchrl_marl_offline.make_actor` and
    :func:`~torchrl_marl_offline.make_critic`, or its policies may saturate (see
    :class:`~torchrl_marl_offline.modules.BatchNorm`).
    Discrete (their section 4.3): straight-through actions instead of Gumbel-softmax.

    Options: those of :class:`OfflineMARLLoss`, and the rules'.
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        *,
        learning: CQL = CQL(noise=0.2),  # noqa: B008
        extraction: PolicyGradient = PolicyGradient(),  # noqa: B008
        **options,
    ) -> None:
        super().__init__(actor, critic, value_learning=learning, extraction=extraction, **options)


class OMARLoss(MACQLLoss):
    r"""OMAR: :class:`MACQLLoss` with actor rectification (Pan et al. 2022, arXiv:2111.11188).

    .. math:: -(1 - \tau)\, Q^1_a(o_a, \pi_a(o_a)) + \tau\, \|\pi_a(o_a) - \hat u_a\|^2

    (Eq. 2; :class:`OMAR`.) :math:`\hat u_a` is the best of the sampler's candidates and :math:`\pi_a(o_a)`. Samplers:
    :class:`SoftmaxSampler`, theirs; :class:`CEMSampler` and :class:`RandomSampler`, of table 2.

    Published: 3 iterations of 10 samples from mean 0 and deviation 2. The text has :math:`\tau` 0.5 on random and
    medium-replay data, 0.7 on medium, 0.9 on expert; the released code has (:math:`\tau`, CQL's :math:`\alpha`), for
    random, medium-replay, medium and expert: spread (1, 0.5) (1, 1) (1, 5) (1, 5); tag (0.9, 0.5) (0.9, 0.5) (0.7, 5)
    (0.9, 5); world (1, 0.5) (0.7, 1) (0.1, 0.5) (0.9, 5); HalfCheetah (1, 1) (0.9, 5) (0.7, 1) (0.5, 5). On HalfCheetah
    it searches by CEM (2 iterations of 20 samples, 5 elites), with learning rate 3e-4, batches of 256, 256 units,
    100,000 updates. Otherwise as :class:`MACQLLoss`.

    What differs: as :class:`MACQLLoss`, and :class:`SoftmaxSampler` says what of equation 3. Discrete: the best legal
    action is found exactly, and the policy's probabilities approach its one-hot code.

    Options: those of :class:`MACQLLoss` and the rule's ``rectification`` (:math:`\tau`) and ``sampler``.
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        *,
        rectification: Annotated[float, UNIT] = OMAR.rectification,
        sampler: ActionSampler = SoftmaxSampler(),  # noqa: B008
        others: Literal["data", "policy"] = OMAR.others,
        **options,
    ) -> None:
        extraction = OMAR(rectification=rectification, sampler=sampler, others=others)
        super().__init__(actor, critic, extraction=extraction, **options)


class MAICQLoss(OfflineMARLLoss):
    r"""MA-ICQ: implicit constraint Q-learning (Yang et al. 2021, arXiv:2106.03400).

    .. math::
        y = r + \gamma \rho\, \bar Q_{tot}(s', u'), \quad \rho = N\, \mathrm{softmax}(\bar Q_{tot}(s', u') / \beta),
        \qquad -N\, \mathrm{softmax}\big(w_a(s) (Q_a(o_a, u_a) - V_a) / \alpha\big) \log \pi_a(u_a | o_a)

    with softmaxes over the batch (:class:`ICQ`, :class:`AWR`). :math:`V_a` is the mean of :math:`Q_a` over the policy's
    actions (discrete), or its value at the mode (continuous). The paper's critic is
    ``make_critic(decomposition="linear")``.

    Published: :math:`\beta` 1000, :math:`\alpha` 0.1, here ``temperature`` :math:`= 1 / \alpha`; targets over time by
    TD(:math:`\lambda`) on StarCraft.

    What differs: the released code has :math:`w_a(s)` in front of the softmax instead of in it, and one critic head; it
    takes the softmax at each time step of a batch of episodes, this one over all rows.

    Settings: :math:`\beta` and :math:`\alpha` are in units of the return. Where values vary by much of :math:`\beta`,
    :math:`\rho \gamma` exceeds 1 for the larger ones and the critic diverges.

    Options: those of :class:`OfflineMARLLoss`, and the rules' ``beta`` and ``temperature``.
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        *,
        beta: Annotated[float, POSITIVE] = ICQ.beta,
        temperature: Annotated[float, NON_NEGATIVE] = 10.0,
        advantage: Literal["local", "joint", "weighted"] = "weighted",
        **options,
    ) -> None:
        weights = AWR(temperature, advantage, weights="softmax", standardize=False, baseline="expected")
        super().__init__(actor, critic, value_learning=ICQ(beta), extraction=weights, **options)


class OMACLoss(OfflineMARLLoss):
    r"""OMAC: coupled value factorization (Wang and Zhan 2023, arXiv:2306.08900).

    .. math::
        \mathbb{E}\,\ell^2_\tau(\bar Q_a - V_a), \qquad y = r + \gamma V_{tot}(s'), \qquad
        -e^{\beta w_a(s) (\bar Q_a - V_a)} \log \pi_a(u_a | o_a)

    with :math:`Q_{tot} = \sum_a w_a(s) Q_a + b(s)` and :math:`V_{tot} = \sum_a w_a(s) V_a + b(s)`
    (``make_critic(decomposition="linear")``; :class:`OMAC`, :class:`AWR`).

    Settings: expectile 0.7, temperature :math:`\beta` 3 and weights of at most 100 are those of single-agent implicit
    Q-learning.

    What differs: :math:`Q_{tot}` and :math:`V_{tot}` have one weight and one offset, functions of the state alone.

    Options: those of :class:`OfflineMARLLoss`, and the rules' ``expectile`` and ``temperature``.
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        value: TensorDictModuleBase,
        *,
        expectile: Annotated[float, OPEN_UNIT] = 0.7,
        temperature: Annotated[float, NON_NEGATIVE] = 3.0,
        advantage: Literal["local", "joint", "weighted"] = "weighted",
        **options,
    ) -> None:
        weights = AWR(temperature, advantage, weights="clipped", standardize=False)
        super().__init__(actor, critic, value, value_learning=OMAC(expectile), extraction=weights, **options)


class OMIGALoss(OfflineMARLLoss):
    r"""OMIGA: implicit global-to-local value regularization (Wang et al. 2023, arXiv:2307.11620).

    .. math::
        \mathbb{E}\Big[e^{w_a (\bar Q_a - V_a) / \alpha} + \tfrac{w_a}{\alpha} V_a\Big], \qquad
        y = r + \gamma \bar V_{tot}(s'), \qquad -e^{w_a (\bar Q_a - V_a) / \alpha} \log \pi_a(u_a | o_a)

    with :math:`Q_{tot} = \sum_a w_a(s) Q_a + b(s)` and :math:`V_{tot}` of the same weights
    (``make_critic(decomposition="linear")``; :class:`OMIGA`, :class:`AWR`). "OMIGA + Mix" (Lee et al. 2026, fig. 10) is
    a critic with ``decomposition="mixer"``: :math:`w_a = \partial Q_{tot} / \partial Q_a`. One agent, :math:`w = 1` and
    :math:`\alpha \to \infty` is behaviour cloning.

    Published: :math:`\alpha` 10 (1 on some data); exponents clipped at :math:`\pm 10`; batches of 128, learning rate
    5e-4, two hidden layers of 256, :math:`\gamma` 0.99, targets' rate 0.005, gradients clipped at norm 1 (each
    network's own), a tanh-Gaussian actor whose scale is a second output, a million steps, 10 episodes every 5000.

    What differs: the released code keeps the policies' means within :math:`\pm 9` and has a mixer of 64 hidden units.
    One critic head and a deviation that depends on the observation, as released, are the defaults of ``make_loss(spec,
    algorithm="omiga")``; by hand, ``make_critic(num_heads=1)`` and ``make_actor(scale="state_dependent")``.

    Settings: a tanh-Gaussian takes recorded actions at a bound for ones of far-off means. Where there are many of them
    (a sixth of the expert's in ``mpe/simple_spread``), ``distribution="gaussian"`` clones better; the same holds for
    :class:`MAICQLoss` and :class:`OMACLoss`.

    ``alpha`` sets two coefficients: ``loss.regularization`` :math:`= \alpha` of the values and ``loss.temperature``
    :math:`= 1 / \alpha` of the policy. Options: those of :class:`OfflineMARLLoss`.
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        value: TensorDictModuleBase,
        *,
        alpha: Annotated[float, POSITIVE] = OMIGA.regularization,
        **options,
    ) -> None:
        learning = OMIGA(alpha)
        bounds = {"exponent_range": learning.exponent_range, "max_weight": None}
        weights = AWR(1 / alpha, "weighted", weights="clipped", standardize=False, **bounds)
        super().__init__(actor, critic, value, value_learning=learning, extraction=weights, **options)


class OMSDLoss(OfflineMARLLoss):
    r"""OMSD: sequential score decomposition (Qiao et al. 2025, arXiv:2505.05968).

    .. math::
        y = r + \gamma V(s'), \qquad
        \nabla_{u_a} = -\nabla_{u_a} Q(s, u)
        + \tfrac{1}{\beta}\, \omega(t)\, \big(\epsilon_a(u_a^t, t | s, u_{<a}) - \epsilon\big), \quad u = \pi(o)

    (:class:`IQL`; :class:`ScoreMatching`; :class:`ScoreRegularized`, its eq. 6 in the form of SRPO (Chen et al. 2023,
    arXiv:2310.07297).) :math:`\mu(u | s) = \prod_a \mu_a(u_a | s, u_{<a})` keeps the modes of the joint behaviour,
    which independent models would mix up; policies act at once, each on its own observation, by one evaluation. The
    paper's critic is centralized.

    Published: by a summary of the paper, whose text was not at hand, :math:`\beta` from 0.001 (expert data) to 0.3
    (random data) and deterministic actors. Of SRPO, on which it builds: :math:`\beta` from 0.01 to 0.5; expectile 0.7
    (0.9 in mazes); a schedule of 0.1 to 20, :math:`t` in [0.02, 0.98], :math:`\omega(t) = \sigma_t^2`; batches of 256,
    learning rate 3e-4, layers of 256.

    What differs: critic and score are trained along with the policies, not before them; all agents are updated at once,
    each given its predecessors' actions before the step, not after it; the score is averaged over times with
    :math:`\omega(t) = \alpha_t / \sigma_t`, where the paper goes to small ones, since SRPO's :math:`\omega` mixes up
    modes (:class:`ScoreRegularized`); the noise is subtracted, which SRPO's released code leaves out; the value is the
    first head's, where SRPO averages two target heads; networks have no residual blocks. An actor whose mode is not
    clipped: ``make_actor(distribution="tanh_gaussian")``. Discrete, which the paper has not: a model from
    :func:`~torchrl_marl_offline.make_sequential_policy`, :class:`SequentialCloning`, and its exact likelihood in the
    place of the score.

    Options: those of :class:`OfflineMARLLoss`, and the rules'.
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        value: TensorDictModuleBase,
        behaviour: TensorDictModuleBase,
        *,
        expectile: Annotated[float, OPEN_UNIT] = 0.7,
        beta: Annotated[float, POSITIVE] = ScoreRegularized.beta,
        normalize: bool = ScoreRegularized.normalize,
        time_weight: Literal["score", "uniform", "variance"] = ScoreRegularized.time_weight,
        behaviour_learning: ScoreMatching | SequentialCloning = ScoreMatching(),  # noqa: B008
        **options,
    ) -> None:
        extraction = ScoreRegularized(beta=beta, normalize=normalize, time_weight=time_weight)
        options |= {"behaviour": behaviour, "behaviour_learning": behaviour_learning}
        super().__init__(actor, critic, value, value_learning=IQL(expectile), extraction=extraction, **options)


class MABCQLoss(OfflineMARLLoss):
    r"""MA-BCQ: batch-constrained Q-learning (Fujimoto et al. 2019, arXiv:1812.02900) for every agent.

    .. math::
        y = r + \gamma \max_j \big[\lambda \min_k \bar Q^k(s', u_j) + (1 - \lambda) \max_k \bar Q^k(s', u_j)\big],
        \qquad u_j = \hat u_j + \xi(o', \hat u_j), \quad \hat u_j \sim \mu(\cdot | o')

    (:class:`BCQ`.) The model of the data :math:`\mu` is a conditional variational autoencoder for each agent, and
    :math:`|\xi| \le \Phi` is trained to raise the critic (:class:`VAELearning`, ``make_vae``). Discrete (Fujimoto et
    al. 2019, arXiv:1910.01708): :math:`\mu` is a cloned policy (:class:`SequentialCloning`,
    ``make_behaviour_policy``), and the maximum is over the actions with :math:`\mu(u) / \max \mu \ge 0.3`. Agents take
    their best by their own values, through which the team's is mixed.

    Published: 10 actions, :math:`\lambda` 0.75, :math:`\Phi` 0.05 (half the range is 1); a latent of twice the action's
    size, clipped at 0.5 where actions are generated, divergences weighed by 0.5; autoencoder of two layers of 750,
    critics and perturbation of 400 and 300; batches of 100, learning rate 1e-3, targets' rate 0.005, :math:`\gamma`
    0.99.

    What differs: the policy is distilled (:class:`BCQDistillation`): at every step it regresses on the best of 10
    perturbed actions by the first head, so that an agent acts by one evaluation of its own network; the released code
    draws 100 at execution, and takes the best then. The next actions' perturbation is the current one, not a target's.
    Discrete: the target network both chooses and values the next action, where theirs is chosen by the current one;
    logits are not regularized, and errors are squared. A centralized critic is asked for each agent's action with the
    others' as recorded, in targets as the policy has them. An actor whose mode is not clipped:
    ``make_actor(distribution="tanh_gaussian")``.

    Options: those of :class:`OfflineMARLLoss`, and the rules' ``samples``, ``threshold``, ``min_weight`` and
    ``kl_weight``.
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        behaviour: TensorDictModuleBase,
        *,
        samples: Annotated[int, FEW] = BCQ.samples,
        threshold: Annotated[float, UNIT] = BCQ.threshold,
        min_weight: Annotated[float, UNIT] = BCQ.min_weight,
        kl_weight: Annotated[float, NON_NEGATIVE] = VAELearning.kl_weight,
        **options,
    ) -> None:
        constraint = {"samples": samples, "threshold": threshold}
        discrete = BEHAVIOUR_LOGITS in map(unravel_key, behaviour.out_keys)
        super().__init__(
            actor,
            critic,
            value_learning=BCQ(**constraint, min_weight=min_weight),
            extraction=BCQDistillation(**constraint),
            behaviour_learning=SequentialCloning() if discrete else VAELearning(kl_weight=kl_weight),
            behaviour=behaviour,
            **options,
        )


class MACFlowLoss(OfflineMARLLoss):
    r"""MAC-Flow: multi-agent coordination by flow matching (Lee et al. 2025, arXiv:2511.05005).

    .. math::
        y = r + \gamma\, \tfrac{1}{2} \sum_k \bar Q^k_{tot}(s', \pi(o', z')), \qquad
        \alpha\, \|\pi_a(o_a, z_a) - [\mathrm{flow}(o, z)]_a\|^2 - Q_{tot}(s, \pi(o, z)) / \mathbb{E}|Q_{tot}|

    with normal z (:class:`TD`, :class:`FlowDistillation`). The flow is a model of the *joint* behaviour, of all
    observations (:class:`FlowMatching`, ``make_flow``); the policies, each of its own observation, reach its actions in
    one step (``make_actor(distribution="one_step")``). ``make_critic(decomposition="vdn")`` is the paper's critic;
    "MAC-Flow + Mix" is one with ``"mixer"``, and independent critics are flow Q-learning (Park et al. 2025,
    arXiv:2502.02538) of a joint flow.

    Published: by its released code, for continuous actions (``algorithm="mac_flow"``) :math:`\alpha` 1 of a normalized
    critic, four layers of 512, :math:`\gamma` 0.995, the team's value the agents' mean, not their sum; for
    discrete ones
    (``"mac_flow_discrete"``) :math:`\alpha` 3 of one that is not, four layers of 256, :math:`\gamma` 0.99, memory by a
    recurrent network. For both: 10 steps of Euler's method; the mean of two heads; normalized layers in critics alone;
    learning rate 3e-4, targets' rate 0.005.

    What differs: equation 9 has :math:`Q_{tot}` as it is (``normalize=False``). The released velocity of an agent
    sees that agent's observation and noise alone, with a time of its own; this one is joint, as in the paper. What is
    executed as the mode is the action without noise, as in the released discrete code; ``"sample"`` executes one of
    noise, as in the continuous. Discrete: the flow's action is a legal one; the critic's gradient goes straight through
    the policies' choice, where the released code's has none; times are not embedded. No memory.

    Options: those of :class:`OfflineMARLLoss`, and the rules' ``alpha``, ``normalize``, ``flow_steps`` and
    ``min_weight`` (with two heads 0.5 is their mean, 1 their minimum).
    """

    @checked
    def __init__(
        self,
        actor: TensorDictModuleBase,
        critic: Critic,
        behaviour: TensorDictModuleBase,
        *,
        alpha: Annotated[float, NON_NEGATIVE] = FlowDistillation.alpha,
        normalize: bool = FlowDistillation.normalize,
        flow_steps: Annotated[int, FEW] = FlowDistillation.steps,
        min_weight: Annotated[float, UNIT] = 0.5,
        **options,
    ) -> None:
        super().__init__(
            actor,
            critic,
            value_learning=TD(sample=True, min_weight=min_weight),
            extraction=FlowDistillation(alpha=alpha, normalize=normalize, steps=flow_steps),
            behaviour_learning=FlowMatching(),
            behaviour=behaviour,
            **options,
        )
