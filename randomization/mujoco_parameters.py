"""Writing parameters into MuJoCo models: one live model, or the n plants of a batch, by the same rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import ParameterError
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

    def edit(self, field: str) -> NDArray[np.generic]:
        """Return a field's values, to be written into: (n, ...)."""
        ...

    def commit(self, rows: Mask, constants: bool) -> None:
        """Make what was written take effect; with `constants`, compute anew what MuJoCo derives from it."""
        ...


class LiveModel:
    """The one model of a running environment, which shares it with its `MjData`."""

    n = 1

    def __init__(self, model: mujoco.MjModel) -> None:
        import mujoco

        self._model = model
        # mj_setConst overwrites the data it is given, which must not be the environment's
        self._scratch = mujoco.MjData(model)
        self._numbers: dict[str, Array] = {}

    def edit(self, field: str) -> NDArray[np.generic]:
        value = model_field(self._model, field)
        if isinstance(value, np.ndarray):
            return np.asarray(value[None])
        self._numbers[field] = np.array([value], float)
        return self._numbers[field]

    def commit(self, rows: Mask, constants: bool) -> None:
        import mujoco

        for field, value in self._numbers.items():
            setattr(self._model.opt, field.removeprefix("opt."), float(value[0]))
        self._numbers.clear()
        if constants:
            mujoco.mj_setConst(self._model, self._scratch)


class BatchModels:
    """The models of a batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    @property
    def n(self) -> int:
        return int(self._batch.nsim)

    def edit(self, field: str) -> NDArray[np.generic]:
        return np.asarray(self._batch.expand(field))

    def commit(self, rows: Mask, constants: bool) -> None:
        if constants:
            self._batch.set_const(np.flatnonzero(rows).astype(np.int32))


class MujocoParameters:
    """A `ParameterStore` over the fields of MuJoCo models.

    Inertias follow masses, unless a body's inertia was itself written; derived constants are computed anew; every value
    is checked before the first is written, and read back after the last.

    Args:
        fields: the table of parameters, with the nominal values.
        arrays: the models.
    """

    def __init__(self, fields: MujocoFields, arrays: ModelArrays) -> None:
        self.fields, self._arrays = fields, arrays
        self.written: dict[str, Address] = {}
        self._own_inertia = np.zeros((arrays.n, fields.model.nbody), bool)
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
        try:
            self._assign(addresses, new, rows)
            self._check_together(addresses, rows)
            self._arrays.commit(rows, self._needs_constants(touched))
            self._check_read_back(addresses, new, rows)
        except Exception as error:
            for field, old in before.items():
                self._arrays.edit(field)[rows] = old
            self._arrays.commit(rows, self._needs_constants(touched))
            if isinstance(error, ParameterError):
                raise
            raise ParameterError(f"MuJoCo refused {', '.join(values)}: {error}") from error
        for address in addresses.values():
            if address.place.field == "body_inertia":
                self._own_inertia[rows, address.place.index[0]] = True
        self.written.update(addresses)

    def read(self) -> dict[str, Array]:
        out = {name: np.full(self.n, value) for name, value in self.fields.nominal.items()}
        return out | self._read(self.written)

    def restore(self, mask: Mask | None = None) -> None:
        rows = np.ones(self.n, bool) if mask is None else np.asarray(mask, bool)
        if not self.written or not rows.any():
            return
        touched = self._touched(self.written)
        for field in touched:
            self._arrays.edit(field)[rows] = self.fields.nominal_row(field)
        self._own_inertia[rows] = False
        self._arrays.commit(rows, self._needs_constants(touched))

    def describe(self, plant: int) -> str:
        """Return the written parameters of one plant in a line, or "" where there are none."""
        values = [f"{name}={value[plant]:g}" for name, value in self._read(self.written).items()]
        return f"; its parameters: {', '.join(values)}" if values else ""

    def _read(self, addresses: Mapping[str, Address]) -> dict[str, Array]:
        out = {}
        for name, a in addresses.items():
            stored = self._arrays.edit(a.place.field)[at(slice(None), a.place)].astype(float)
            if a.view:
                nominal = self.fields.nominal_row(a.place.field)[a.place.index]
                out[name] = view_of(a.view, stored, nominal)[:, a.component]
            else:
                out[name] = stored / a.place.factor
        return out

    def _touched(self, addresses: Mapping[str, Address]) -> list[str]:
        fields = [place.field for a in addresses.values() for place in a.places]
        fields += ["body_inertia" for a in addresses.values() if a.leads >= 0]
        return list(dict.fromkeys(fields))

    def _needs_constants(self, fields: list[str]) -> bool:
        return any(field in self._inputs or field.startswith("opt.") for field in fields)

    def _assign(self, addresses: Mapping[str, Address], new: Mapping[str, Array], rows: Mask) -> None:
        plants = np.flatnonzero(rows)
        own = {a.place.index[0] for a in addresses.values() if a.place.field == "body_inertia"}
        for name, a in addresses.items():
            for place in a.places if not a.view else ():
                self._arrays.edit(place.field)[at(plants, place)] = place.factor * new[name]
        for body in {a.leads for a in addresses.values() if a.leads >= 0} - own:
            self._follow(body, addresses, plants)
        for name, a in addresses.items():
            if a.view:
                field = self._arrays.edit(a.place.field)
                nominal = self.fields.nominal_row(a.place.field)[a.place.index]
                three = view_of(a.view, field[at(plants, a.place)].astype(float), nominal)
                three[:, a.component] = new[name]
                field[at(plants, a.place)] = row_of(a.view, three, nominal)

    def _follow(self, body: int, writing: Mapping[str, Address], plants: NDArray[np.intp]) -> None:
        """Let the inertia of a body follow its mass and its size, where it was not itself written."""
        plants = plants[~self._own_inertia[plants, body]]
        factor = np.ones(len(plants))
        leaders = {n: a for n, a in self.fields.leaders[body].items() if n in writing or n in self.written}
        for name, value in self._read(leaders).items():
            factor *= (value[plants] / self.fields.nominal[name]) ** leaders[name].power
        # always against the nominal row, so that writing twice is writing once
        row = self.fields.nominal_row("body_inertia")[body]
        self._arrays.edit("body_inertia")[plants, body] = row * factor[:, None]

    def _check_range(self, name: str, address: Address, value: Array) -> None:
        bad = (value < address.low) | (value > address.high)
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
                moments = self._arrays.edit(field)[rows][:, index[0]].astype(float)
                short = moments.sum(1) < 2 * moments.max(1) * (1 - 1e-9)
                if short.any():
                    raise ParameterError(
                        f"{name}: no body has the principal moments {moments[short][0]} kg·m²: the largest exceeds the "
                        "sum of the others; scale all three together, or randomize `second_moment` instead"
                    )
            elif field.endswith(("_range", "_forcerange")):
                both = self._arrays.edit(field)[rows][:, index[0]].astype(float)
                if (both[:, 0] >= both[:, 1]).any():
                    raise ParameterError(f"{name}: the lower end must lie below the upper one, found {both[0]}")
            elif field == "opt.wind":
                still = self._arrays.edit(field)[rows][:, index[0]].astype(float) != 0
                for medium in ("opt.density", "opt.viscosity"):
                    still &= self._arrays.edit(medium)[rows].astype(float) == 0
                if still.any():
                    raise ParameterError(
                        f"{name} would change nothing: the medium has neither density nor viscosity; write "
                        "dynamics.world.density with it (air has 1.2 kg/m³)"
                    )
            elif field == "light_dir":
                length = np.linalg.norm(self._arrays.edit(field)[rows][:, index[0]].astype(float), axis=1)
                if (length < 1e-6).any():
                    raise ParameterError(f"{name}: a light needs a direction, found zero")

    def _check_read_back(self, addresses: Mapping[str, Address], new: Mapping[str, Array], rows: Mask) -> None:
        for name, in_force in self._read(addresses).items():
            a, wrote, found = addresses[name], new[name], in_force[rows]
            exact = np.array_equal(found, wrote)
            # single precision fields and views round
            if not exact and not np.allclose(
                found, wrote, rtol=1e-6 if not a.view else 1e-9, atol=1e-12 if not a.view else 1e-9
            ):
                raise ParameterError(f"{name}: wrote {wrote[0]:g}, but {found[0]:g} is in force")
