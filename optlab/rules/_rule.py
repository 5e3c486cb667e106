"""What a rule declares: its arithmetic for one array, its hyperparameters and its slots."""

import keyword
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import compute_dtype
from optlab._types import Array, ArrayLike, DTypeLike, Mask
from optlab.rules._hyperparams import Hyperparams, Parameter, named_tuple
from optlab.rules._leaf import AxesChoice, AxesOf, Leaf
from optlab.rules._patterns import axes_of
from optlab.rules._state import RuleState, state_type

InitSlot = Callable[..., Any]
"""Makes a slot of one leaf: (parameter) → array, tree of arrays or None; see `Rule.slots`."""

JOINED = "joined"
"""The field of a state for the number of updates made before its leaves joined."""

RESERVED = ("count", "step", "hyperparams", JOINED, *RuleState.__annotations__)
"""The attributes of a state that a rule cannot name itself."""


@dataclass(frozen=True)
class Slot:
    """A slot in the shape of the parameter, filled with one number; made with `slot`."""

    value: ArrayLike
    dtype: DTypeLike | None

    def __call__(self, param: Array, *static: Hashable) -> Array:
        """Return the slot of one parameter before the first update."""
        dtype = self.dtype
        if dtype is None:
            is_complex = jnp.issubdtype(param.dtype, jnp.complexfloating)
            dtype = param.dtype if is_complex else compute_dtype(param.dtype)
        # A parameter that is only described, by shape and sharding, will do.
        return jnp.full_like(param, self.value, dtype=dtype)


def slot(value: ArrayLike = 0.0, dtype: DTypeLike | None = None) -> Slot:
    """Declare a slot in the shape of the parameter.

    Args:
        value: what it is filled with before the first update.
        dtype: its type; None for the parameter's, but at least float32.
    """
    return Slot(value, dtype)


def _hyperparams_as_they_are(h: Any, t: Array) -> Any:
    return h


@dataclass(frozen=True, eq=False)
class Rule:
    """One rule of optimization, written for one array.

    `lift` turns it into an Optax transformation. Two functions hold the arithmetic: `once` (or
    `across`) computes the numbers that all leaves share, `leaf` computes one leaf.

    Attributes:
        who: the public name that errors begin with.
        leaf: (update, slots, scalars, parameter) → (update, slots). `update` is the gradient, or
            what the rule before made of it, in float32 or float64. `slots` is a NamedTuple of this
            leaf's slots, and `leaf` returns the new ones as a tuple in the same order. `scalars`
            is what `once` or `across` returned. `parameter` is None where `update` was called
            without parameters. `leaf` is traced once for each shape, so a number that changes must
            reach it through `scalars`. With `static` it receives a fifth argument.
        hyperparams: the hyperparameters by name, declared with `number` and `decay`.
        slots: for each slot its name and how it starts, `slot(...)` or a function of the parameter
            (an array or a `jax.ShapeDtypeStruct`). The function returns an array of any shape and
            type, a tree of such arrays, or None where this leaf needs no such slot, and `leaf`
            receives and returns None for it. With `static` the function receives a second
            argument. In a complex leaf that is processed in parts, it is called with each part.
        once: (hyperparameters in force, number of this update from 1) → `scalars`; computed once
            for the whole tree. Without it `scalars` are the hyperparameters.
        across: in place of `once` for a rule that needs the whole tree: (hyperparameters in force,
            number of this update from 1, the updates of all leaves, their parameters) → `scalars`.
            The updates are those that the rules before this one have made.
        reads: names of hyperparameters of an earlier rule in the same lift. They are appended to
            the ones that `once` receives.
        static: what `leaf` must know of a leaf besides its arrays: (a `Leaf` with its path, shape,
            type, axes and masks) → a hashable value, which `leaf` and the functions in `slots`
            receive as their last argument. Leaves with equal values share one compiled function.
        stacked: whether leaves of one shape and type are stacked and computed in one batch, which
            is faster for products of small matrices. `leaf` is still written for one array. Where
            a mesh with explicit axes shards the leaves, each device computes some of the batch,
            on whole arrays; where `static` is given, a leaf stays sharded along its batch axes.
        axes: the axes of some leaves, for `static` and `where`: (path, shape) → `Axes`, or None
            for `default_axes`; or a mapping of patterns, as `paths_matching` takes them, to `Axes`.
            A constructor passes its own argument `axes` on. Those given to `lift` go first.
        complex: what happens to complex leaves. "parts": the real and the imaginary part are two
            real arrays. "whole": `leaf` receives the complex array. "refused": an error.
        fields: further scalars of the state that are neither slots nor hyperparameters, by name,
            each with a function that makes it.
        readable: those of `fields` that `optlab.hyperparams` reads, with their domains.
        observe: in place of `once` for a rule that reads extra arguments of `update`, such as a
            loss: (state, hyperparameters in force, extra arguments) → (state, `scalars`).
        needs_params: whether `update` must be given the parameters.
        metric: (new slots, `scalars`, and with `static` a third argument) → by how much the rule
            multiplies a gradient that stays the same, once its averages have settled: a positive
            number, or an array like the leaf. Adam's is 1/(√v̂ + ε). It exists where the rule
            multiplies averages of what comes in; None where the rule does something else, such as
            taking signs.
        needs_metric: whether `leaf` receives (`scalars`, metric) in place of `scalars`, with the
            product of the metrics of the rules before it. Each of them must have one, and be
            in the same pass over the leaves: none may have `across`, be `stacked`, or be "whole".
        after_update: whether `leaf` receives the parameter plus the update made so far, rounded to
            the parameter's type, in place of the parameter.
        mask: which leaves the rule touches, as a tree of booleans or a function of the parameters;
            None for all. A leaf that the rule does not touch has no slots.
        where: which of these leaves it touches, by their facts: (a `Leaf`) → bool; None for all.
        check_leaves: called at init with the facts of the leaves that the rule touches and with
            those of all leaves, so that it can refuse them or warn.
        masks: further masks by name, for parts of the arithmetic. `static` finds the names of those
            that let a leaf through in `Leaf.masks`.
        update_norm: for a rule that sets the spectral norm of its updates, (in, out) → the norm of
            the update of a linear map. `optlab.mup` reads it.
        kind: the rule's own name, which names the type of its state; `who` by default.
        counter: the state's field for the number of updates made: "count", or "step" for a rule
            that is no direction, such as a clip. So `optax.tree.get(state, "count")` finds one.

    Raises:
        ValueError: a hyperparameter is outside its domain, a name is declared twice or cannot name
            a field, or an attribute is not what it must be.
    """

    who: str
    leaf: Callable[..., tuple[Array, Any]]
    hyperparams: Mapping[str, Parameter] = field(default_factory=dict)
    slots: Mapping[str, InitSlot] = field(default_factory=dict)
    once: Callable[[Any, Array], Any] = _hyperparams_as_they_are
    across: Callable[[Any, Array, Sequence[Array], Sequence[Array | None]], Any] | None = None
    reads: Sequence[str] = ()
    static: Callable[[Leaf], Hashable] | None = None
    axes: AxesChoice | None = None
    stacked: bool = False
    complex: Literal["parts", "whole", "refused"] = "parts"
    fields: Mapping[str, Callable[[], Array]] = field(default_factory=dict)
    readable: Mapping[str, _checks.Domain] = field(default_factory=dict)
    observe: Callable[[Any, Any, Mapping[str, Any]], tuple[Any, Any]] | None = None
    needs_params: bool = False
    metric: Callable[..., Array | float] | None = None
    needs_metric: bool = False
    after_update: bool = False
    mask: Mask | None = None
    where: Callable[[Leaf], bool] | None = None
    check_leaves: Callable[[Sequence[Leaf], Sequence[Leaf]], None] | None = None
    masks: Mapping[str, Mask | None] = field(default_factory=dict)
    update_norm: Callable[[int, int], float] | None = None
    kind: str = ""
    counter: Literal["count", "step"] = "count"
    axes_of: AxesOf | None = field(init=False, repr=False)
    settled: Hyperparams = field(init=False, repr=False)
    slot_type: type = field(init=False, repr=False)
    layouts: dict[Hashable, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._check_kinds()
        names = [*self.slots, *self.fields, *self.hyperparams]
        for name in names:
            if not _is_field_name(name) or name in RESERVED:
                _checks.fail(
                    self.who,
                    "slots, fields and hyperparameters must have names that a state can use",
                    repr(name),
                    f"choose an identifier other than {', '.join(RESERVED)}",
                )
            if names.count(name) > 1:
                _checks.fail(
                    self.who,
                    "slots, fields and hyperparameters must have different names",
                    f"{name} twice",
                    "rename one of them",
                )
        object.__setattr__(self, "settled", Hyperparams(self.who, self.hyperparams))
        object.__setattr__(self, "slot_type", named_tuple("Slots", tuple(self.slots)))

    def _check_kinds(self) -> None:
        """Require of each attribute what it must be."""
        if not isinstance(self.who, str):
            _checks.fail("Rule", "who must be the name that errors begin with", repr(self.who))
        functions = {"leaf": self.leaf, "once": self.once}
        functions |= {f"fields[{name!r}]": make for name, make in self.fields.items()}
        object.__setattr__(self, "axes_of", axes_of(self.who, self.axes))
        for what in (
            "across",
            "static",
            "where",
            "check_leaves",
            "observe",
            "metric",
            "update_norm",
        ):
            if getattr(self, what) is not None:
                functions[what] = getattr(self, what)
        for what in ("slots", "hyperparams"):
            if not isinstance(getattr(self, what), Mapping):
                got = type(getattr(self, what)).__name__
                _checks.fail(self.who, f"{what} must be a mapping by name", got)
        for name, start in self.slots.items():
            functions[f"slots[{name!r}]"] = start
        for what, function in functions.items():
            if not callable(function):
                remedy = "declare it with slot(...)" if what.startswith("slots") else ""
                _checks.fail(self.who, f"{what} must be a function", repr(function), remedy)
        for name, parameter in self.hyperparams.items():
            if not isinstance(parameter, Parameter):
                remedy = "declare it with number(...) or decay(...)"
                _checks.fail(self.who, f"{name} must be declared", f"{parameter!r}", remedy)
        for what, choices in (
            ("complex", ("parts", "whole", "refused")),
            ("counter", ("count", "step")),
        ):
            own = getattr(self, what)
            if own not in choices:
                required = f"{what} must be one of {', '.join(map(repr, choices))}"
                _checks.fail(self.who, required, f"{what}={own!r}")

    def state_type(self, counts: bool, joins: bool = False) -> type:
        """Return the type of the rule's state, with its counter where it is the one that counts.

        With `joins` it also holds how many updates were made before its leaves joined.
        """
        fields = [*self.slots, *self.fields]
        if counts:
            fields.insert(0, self.counter)
            fields += [JOINED] * joins
        if self.hyperparams:
            fields.append("hyperparams")
        return state_type(
            self.kind or self.who.replace(".", "_"),
            tuple(fields),
            self.settled.declarations,
            tuple(self.readable.items()),
        )

    def init_leaf(self, name: str, param: Any, static: tuple[Hashable, ...]) -> Any:
        """Return the slot `name` of one leaf before the first update, a tree of arrays."""
        start = self.slots[name]
        if not jnp.issubdtype(param.dtype, jnp.complexfloating) or self.complex == "whole":
            return start(param, *static)
        return jax.tree.map(
            complex_of,
            start(_part(param, jnp.real), *static),
            start(_part(param, jnp.imag), *static),
        )

    def slot_layout(
        self, name: str, shape: tuple[int, ...], dtype: DTypeLike, static: tuple[Hashable, ...]
    ) -> Any:
        """Return the structure and the shapes of one leaf's slot; `MaskedNode` for none."""
        key = (name, shape, jnp.dtype(dtype), static)
        if key not in self.layouts:
            param = jax.ShapeDtypeStruct(shape, dtype)
            slot = jax.eval_shape(lambda p: self.init_leaf(name, p, static), param)
            self.layouts[key] = optax.MaskedNode() if slot is None else slot
        return self.layouts[key]


def with_prefix(prefix: str, rule: Rule, **values: Any) -> Rule:
    """Return a rule whose hyperparameters have longer names, such as "adam_b1" for "b1".

    So two rules of one lift, which treat different parameters, need not share names.

    Args:
        prefix: what the names begin with.
        rule: a rule with `once`, or with neither `once` nor `across`.
        **values: other values of its hyperparameters, by their names in `rule`; errors about them
            use the longer names.
    """
    names = tuple(rule.hyperparams)
    original = rule.once

    def once(h: Any, t: Array) -> Any:
        short = named_tuple("Hyperparams", names)
        return original(short(*(getattr(h, prefix + name) for name in names)), t)

    return replace(
        rule,
        hyperparams={
            prefix + name: parameter._replace(value=values.get(name, parameter.value))
            for name, parameter in rule.hyperparams.items()
        },
        once=once,
    )


def _is_field_name(name: Any) -> bool:
    """Whether a NamedTuple can have a field of this name."""
    return (
        isinstance(name, str)
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and not name.startswith("_")
    )


def complex_of(real: Array, imaginary: Array) -> Array:
    """Return a complex array of its parts; those of half precision become single."""
    dtype = compute_dtype(real.dtype)
    return jax.lax.complex(real.astype(dtype), imaginary.astype(dtype))


def _part(param: Any, part: Callable[[Array], Array]) -> Any:
    """Return the real or the imaginary part of a parameter, or of the description of one."""
    if isinstance(param, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(
            param.shape, jnp.finfo(param.dtype).dtype, sharding=param.sharding
        )
    return part(param)
