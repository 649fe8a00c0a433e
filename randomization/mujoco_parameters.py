"""Writing parameters into MuJoCo models: one live model, or the n plants of a batch, by the same rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import NonFiniteError, ParameterError
from sim2real.randomization.mujoco_address import Address, Place, row_of, view_of
from sim2real.randomization.mujoco_fields import MujocoFields, model_field
from sim2real.randomization.parameters import Array, Values, check_values

if TYPE_CHECKING:
    import mujoco
    from mujoco.batch import Batch

Mask = NDArray[np.bool_]


def at(plants: slice | NDArray[np.intp], place: Place) -> Any:
    """Return the index of a place in the arrays (n, ...) of plants."""
    return (plants, *place.index)


class ModelArrays(Protocol):
    """The fields of n models as arrays (n, ...)."""

    @property
    def n(self) -> int: ...

    @property
    def timestep(self) -> float:
        """Length of a substep [s]."""
        ...

    def values(self, field: str) -> NDArray[np.generic]:
        """Return a field's values, as they are or as they will be after the commit: (n, ...)."""
        ...

    def edit(self, field: str) -> NDArray[np.generic]:
        """Return a field's values, to be written into: (n, ...)."""
        ...

    def commit(self, rows: Mask, constants: bool) -> None:
        """Make what was written take effect; with `constants`, compute anew what MuJoCo derives from it."""
        ...


# What environments move in their models by themselves, when they reset.
POSES = ("body_pos", "body_quat", "geom_pos", "geom_quat", "site_pos", "site_quat")


class LiveModel:
    """The one model of a running environment, which shares it with its `MjData`.

    The constants that MuJoCo derives are computed without what the environment moves in its model by itself (a door, a
    target), as the environment leaves them too; otherwise they would depend on the episode before.
    """

    n = 1

    def __init__(self, model: mujoco.MjModel) -> None:
        import mujoco

        self._model = model
        # mj_setConst overwrites the data it is given, which must not be the environment's
        self._scratch = mujoco.MjData(model)
        self._numbers: dict[str, Array] = {}
        self._poses = {field: getattr(model, field).copy() for field in POSES}

    @property
    def timestep(self) -> float:
        return float(self._model.opt.timestep)

    def values(self, field: str) -> NDArray[np.generic]:
        return self._numbers[field] if field in self._numbers else np.asarray(model_field(self._model, field))[None]

    def edit(self, field: str) -> NDArray[np.generic]:
        value = model_field(self._model, field)
        self._poses.pop(field, None)  # from now on ours
        if isinstance(value, np.ndarray):
            return np.asarray(value[None])
        # a number is written at the commit; until then, this is what it will be
        return self._numbers.setdefault(field, np.array([value], float))

    def commit(self, rows: Mask, constants: bool) -> None:
        import mujoco

        for field, value in self._numbers.items():
            setattr(self._model.opt, field.removeprefix("opt."), float(value[0]))
        self._numbers.clear()
        if not constants:
            return
        moved = {}
        for field, nominal in self._poses.items():
            now = getattr(self._model, field)
            if not np.array_equal(now, nominal):
                moved[field] = now.copy()
                now[:] = nominal
        mujoco.mj_setConst(self._model, self._scratch)
        for field, value in moved.items():
            getattr(self._model, field)[:] = value


class BatchModels:
    """The models of a batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    @property
    def n(self) -> int:
        return int(self._batch.nsim)

    @property
    def timestep(self) -> float:
        return float(self._batch.model.opt.timestep)

    def values(self, field: str) -> NDArray[np.generic]:
        own = self._batch.expanded(field)
        shared = np.asarray(model_field(self._batch.model, field))
        return np.broadcast_to(shared, (self.n, *shared.shape)) if own is None else np.asarray(own)

    def edit(self, field: str) -> NDArray[np.generic]:
        return np.asarray(self._batch.expand(field))

    def commit(self, rows: Mask, constants: bool) -> None:
        if constants:
            self._batch.set_const(np.flatnonzero(rows).astype(np.int32))


class MujocoParameters:
    """A `ParameterStore` over the fields of MuJoCo models.

    Inertias follow masses and scales, and lengths follow scales, unless they were themselves written; derived constants
    are computed anew; every value is checked before the first is written, and read back after the last.

    Args:
        fields: the table of parameters, with the nominal values.
        arrays: the models.
    """

    def __init__(self, fields: MujocoFields, arrays: ModelArrays) -> None:
        import mujoco

        self.fields, self._arrays = fields, arrays
        self.written: dict[str, Address] = {}
        soft = {name: a for name, a in fields.addresses.items() if a.soft}
        self._scales = {name: np.ones(arrays.n) for name in soft}
        # where an element that would follow was itself written
        self._own = {(p.field, p.index): np.zeros(arrays.n, bool) for a in soft.values() for p in a.places}
        self._own |= {("body_inertia", (body,)): np.zeros(arrays.n, bool) for body in fields.leaders}
        self._changed: set[str] = set()
        self._safe = not int(fields.model.opt.disableflags) & int(mujoco.mjtDisableBit.mjDSBL_REFSAFE)
        self._inputs = frozenset(type(fields.model)._setconst_inputs)

    @property
    def n(self) -> int:
        return self._arrays.n

    def nominal(self) -> dict[str, float]:
        return dict(self.fields.nominal)

    def units(self) -> dict[str, str]:
        return {name: address.unit for name, address in self.fields.addresses.items()}

    def affects(self) -> dict[str, str]:
        """Return what each parameter changes, in a few words."""
        return {name: address.affects for name, address in self.fields.addresses.items()}

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the smallest and largest value that each parameter may take."""
        return {name: (address.low, address.high) for name, address in self.fields.addresses.items()}

    def silent(self) -> dict[str, str]:
        """Return the fields that the engine does not look at in this model: name -> why."""
        return self.fields.silent

    def write(self, values: Values, mask: Mask | None = None) -> None:
        rows = np.ones(self.n, bool) if mask is None else np.asarray(mask, bool)
        for name in values:
            if name in self.fields.silent:
                self.fields.address(name)  # raises, and says why
        check_values(values, self.fields.addresses, self.n)
        new = {name: np.asarray(value, float)[rows] for name, value in values.items()}
        if not values or not rows.any():
            return
        addresses = {name: self.fields.addresses[name] for name in new}
        for name, address in addresses.items():
            self._check_range(name, address, new[name])
        touched = self._touched(addresses)
        before = {field: self._arrays.edit(field)[rows].copy() for field in touched}
        scales = {name: value.copy() for name, value in self._scales.items() if name in new}
        try:
            self._assign(addresses, new, rows)
            self._check_together(addresses, rows)
            self._arrays.commit(rows, self._needs_constants(touched))
            self._check_read_back(addresses, new, rows)
        except Exception as error:
            for field, old in before.items():
                self._arrays.edit(field)[rows] = old
            self._scales |= scales
            self._arrays.commit(rows, self._needs_constants(touched))
            if isinstance(error, ParameterError):
                raise
            raise ParameterError(f"MuJoCo refused {', '.join(values)}: {error}") from error
        for element in self._elements(addresses):
            if element in self._own:
                self._own[element][rows] = True
        self._changed.update(touched)
        self.written.update(addresses)

    def read(self) -> dict[str, Array]:
        out = {name: np.full(self.n, value) for name, value in self.fields.nominal.items()}
        # also what followed, though it was not itself written
        return out | self._read({n: a for n, a in self.fields.addresses.items() if a.place.field in self._changed})

    def restore(self, mask: Mask | None = None, names: Iterable[str] | None = None) -> None:
        rows = np.ones(self.n, bool) if mask is None else np.asarray(mask, bool)
        chosen = set(self.written if names is None else names)
        leaving = {n: a for n, a in self.written.items() if n in chosen}
        if not leaving or not rows.any():
            return
        plants = np.flatnonzero(rows)
        elements = {(p.field, p.index) for a in leaving.values() for p in a.places}
        elements |= {("body_inertia", (a.leads,)) for a in leaving.values() if a.leads >= 0}
        for field, index in elements:
            self._arrays.edit(field)[at(plants, Place(field, index))] = self.fields.nominal_row(field)[index]
        for element in self._elements(leaving) & set(self._own):
            self._own[element][rows] = False
        for name in leaving:
            if name in self._scales:
                self._scales[name][rows] = 1.0
        # what stays in force leads what has just been let go
        leading = {n: a for n, a in self.written.items() if n not in chosen and a.leads >= 0}
        self._assign(leading, {n: v[rows] for n, v in self._read(leading).items()}, rows)
        self._arrays.commit(rows, self._needs_constants(self._touched(leaving | leading)))

    def put(self, plant: int, model: mujoco.MjModel) -> bool:
        """Put what was ever written into a plant into another model of the robot.

        Returns:
            whether the constants that MuJoCo derives are to be computed anew.
        """
        for field in self._changed:
            value = self._arrays.values(field)[plant]
            if field.startswith("opt."):
                setattr(model.opt, field[4:], value)
            else:
                model_field(model, field)[...] = value
        return self._needs_constants(list(self._changed))

    def describe(self, plant: int) -> str:
        """Return the written parameters of one plant in a line, or "" where there are none."""
        values = [f"{name}={value[plant]:g}" for name, value in self._read(self.written).items()]
        return f"; its parameters: {', '.join(values)}" if values else ""

    def _read(self, addresses: Mapping[str, Address]) -> dict[str, Array]:
        out = {}
        for name, a in addresses.items():
            if a.soft:
                out[name] = self._scales[name].copy()
                continue
            stored = self._arrays.values(a.place.field)[at(slice(None), a.place)].astype(float)
            if a.view:
                nominal = self.fields.nominal_row(a.place.field)[a.place.index]
                out[name] = view_of(a.view, stored, nominal)[:, a.component]
            else:
                out[name] = np.asarray(a.place.value(stored))
        return out

    def _touched(self, addresses: Mapping[str, Address]) -> list[str]:
        fields = [place.field for a in addresses.values() for place in a.places]
        fields += ["body_inertia" for a in addresses.values() if a.leads >= 0]
        return list(dict.fromkeys(fields))

    def _needs_constants(self, fields: list[str]) -> bool:
        return any(field in self._inputs or field.startswith("opt.") for field in fields)

    def _elements(self, addresses: Mapping[str, Address]) -> set[tuple[str, tuple[int, ...]]]:
        """What addresses claim by name: elements of fields, and rows of inertia as a whole.

        A row in which some moments follow and others do not might be that of no body.
        """
        claimed = {(p.field, p.index) for a in addresses.values() if not a.soft for p in a.places}
        return claimed | {(field, index[:1]) for field, index in claimed if field == "body_inertia"}

    def _assign(self, addresses: Mapping[str, Address], new: Mapping[str, Array], rows: Mask) -> None:
        plants, claimed = np.flatnonzero(rows), self._elements(addresses)
        for name, a in addresses.items():
            if a.soft:
                self._scales[name][plants] = new[name]
            for place in a.places if not (a.view or a.place.field == "body_inertia") else ():
                if not a.soft:
                    self._arrays.edit(place.field)[at(plants, place)] = place.stored(new[name])
                elif (place.field, place.index) not in claimed:
                    free = ~self._own[place.field, place.index][plants]
                    self._arrays.edit(place.field)[at(plants[free], place)] = place.stored(new[name][free])
        for body in {a.leads for a in addresses.values() if a.leads >= 0}:
            self._follow(body, addresses, plants)
        for name, a in addresses.items():
            if a.place.field == "body_inertia" and not a.view:
                self._arrays.edit("body_inertia")[at(plants, a.place)] = new[name]
        views: dict[tuple[str, Place], dict[int, str]] = {}
        for name, a in addresses.items():
            if a.view:
                views.setdefault((a.view, a.place), {})[a.component] = name
        for (view, place), components in views.items():
            field, nominal = self._arrays.edit(place.field), self.fields.nominal_row(place.field)[place.index]
            three = view_of(view, field[at(plants, place)].astype(float), nominal)
            for k, name in components.items():
                three[:, k] = new[name]
            field[at(plants, place)] = row_of(view, three, nominal)

    def _follow(self, body: int, writing: Mapping[str, Address], plants: NDArray[np.intp]) -> None:
        """Let the inertia of a body follow its mass and its scale, where it was not itself written."""
        plants = plants[~self._own["body_inertia", (body,)][plants]]
        factor = np.ones(len(plants))
        leaders = {n: a for n, a in self.fields.leaders[body].items() if n in writing or n in self.written}
        for name, value in self._read(leaders).items():
            factor *= (value[plants] / self.fields.nominal[name]) ** leaders[name].power
        # always against the nominal row, so that writing twice is writing once
        row = self.fields.nominal_row("body_inertia")[body]
        self._arrays.edit("body_inertia")[plants, body] = row * factor[:, None]

    def _check_range(self, name: str, address: Address, value: Array) -> None:
        # what the model holds is not to be refused
        bad = ((value < address.low) | (value > address.high)) & (value != self.fields.nominal[name])
        if bad.any():
            what = (
                "cannot be negative"
                if address.low >= 0 and value.min() < 0
                else (f"must lie between {address.low:g} and {address.high:g}")
            )
            raise ParameterError(f"{name}: {what}, found {value[bad][0]:g} {address.unit}".rstrip())

    def _check_together(self, addresses: Mapping[str, Address], rows: Mask) -> None:
        """Refuse values that are wrong only beside others."""
        for name, a in addresses.items():
            field, index = a.place.field, a.place.index
            if field == "body_inertia":
                moments = self._arrays.values(field)[rows][:, index[0]].astype(float)
                if (moments.min(1) <= 0).any():
                    raise ParameterError(
                        f"{name}: a moving body needs inertia, found {moments[moments.min(1) <= 0][0]}"
                    )
                short = moments.sum(1) < 2 * moments.max(1) * (1 - 1e-9)
                if short.any():
                    raise ParameterError(
                        f"{name}: no body has the principal moments {moments[short][0]} kg·m²: the largest exceeds the "
                        "sum of the others; scale all three together, or randomize `second_moment` instead"
                    )
            elif field.endswith(("_range", "_forcerange")):
                both = self._arrays.values(field)[rows][:, index[0]].astype(float)
                crossed = both[:, 0] >= both[:, 1]
                if crossed.any():
                    raise ParameterError(
                        f"{name}: the lower end must lie below the upper one, found {both[crossed][0].tolist()}"
                    )
            elif field == "opt.wind":
                still = self._arrays.values(field)[rows][:, index[0]].astype(float) != 0
                for medium in ("opt.density", "opt.viscosity"):
                    still &= self._arrays.values(medium)[rows].astype(float) == 0
                if still.any():
                    raise ParameterError(
                        f"{name} would change nothing: the medium has neither density nor viscosity; write "
                        "dynamics.world.density with it (air has 1.2 kg/m³)"
                    )
            elif field.endswith("_solref") and index[1:] == (0,) and a.low > 0:
                # below two timesteps the engine takes two, unless the model says otherwise
                shortest = 2 * self._arrays.timestep if self._safe else a.low
                short = self._arrays.values(field)[rows][:, index[0], 0].astype(float)
                short = short[short != self.fields.nominal[name]]
                if (short < shortest).any():
                    raise ParameterError(
                        f"{name}: must lie between {shortest:g} (two timesteps) and inf, found {short.min():g} {a.unit}"
                    )
            elif field == "light_dir":
                length = np.linalg.norm(self._arrays.values(field)[rows][:, index[0]].astype(float), axis=1)
                if (length < 1e-6).any():
                    raise ParameterError(f"{name}: a light needs a direction, found zero")

    def _check_read_back(self, addresses: Mapping[str, Address], new: Mapping[str, Array], rows: Mask) -> None:
        for name, in_force in self._read(addresses).items():
            a, wrote, found = addresses[name], new[name], in_force[rows]
            # single precision fields and views round
            wrong = (
                ~np.isclose(found, wrote, rtol=1e-9, atol=1e-9) if a.view else ~np.isclose(found, wrote, 1e-6, 1e-12)
            )
            if wrong.any():
                raise ParameterError(f"{name}: wrote {wrote[wrong][0]:g}, but {found[wrong][0]:g} is in force")
            for place in a.places if a.soft else ():
                held = self._own[place.field, place.index][rows] | (
                    (place.field, place.index) in self._elements(addresses)
                )
                stored = self._arrays.values(place.field)[at(np.flatnonzero(rows), place)].astype(float)
                if not np.allclose(stored[~held], place.stored(wrote[~held]), rtol=1e-9):
                    raise ParameterError(
                        f"{name}: wrote {wrote[0]:g}, but {place.field}{list(place.index)} did not follow"
                    )


class ParameterizedPlants:
    """What simulators have in common whose parameters are a `MujocoParameters`: n plants of one robot."""

    _parameters: MujocoParameters

    def nominal(self) -> dict[str, float]:
        return self._parameters.nominal()

    def units(self) -> dict[str, str]:
        return self._parameters.units()

    def write(self, values: Values, mask: Mask | None = None) -> None:
        """Write values (name -> (n,)), let inertias follow masses, recompute derived constants, and read back."""
        self._parameters.write(values, mask)

    def read(self) -> dict[str, Array]:
        return self._parameters.read()

    def restore(self, mask: Mask | None = None, names: Iterable[str] | None = None) -> None:
        self._parameters.restore(mask, names)

    def silent(self) -> dict[str, str]:
        """Return the fields that the engine does not look at, or does not have, in this model: name -> why."""
        return self._parameters.silent()

    def _require_finite(self, what: str, value: Array) -> None:
        """Raise a NonFiniteError for the first plant whose row of `value` (n, ...) is not finite."""
        import mujoco

        # MuJoCo takes what is larger than its mjMAXVAL for infinite, and replaces it by zero
        bad = ~(np.abs(value) <= mujoco.mjMAXVAL).reshape(len(value), -1).all(1)
        if bad.any():
            plant = int(bad.argmax())
            raise NonFiniteError(f"plant {plant} has a {what} that is not finite{self._parameters.describe(plant)}")

    def _require_kept(self, lost: NDArray[np.intp]) -> None:
        """Raise a NonFiniteError for the first of the plants that diverged in the engine."""
        if len(lost):
            raise NonFiniteError(f"plant {lost[0]} left the finite numbers{self._parameters.describe(int(lost[0]))}")
