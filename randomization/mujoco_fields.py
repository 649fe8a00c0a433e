"""The names under which the fields of a MuJoCo model are parameters, with their nominal values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sim2real.errors import RobotError, did_you_mean
from sim2real.randomization.mujoco_address import Address, view_of
from sim2real.randomization.mujoco_table import Table
from sim2real.randomization.parameters import Array

if TYPE_CHECKING:
    import mujoco


class MujocoFields:
    """The table of a model's parameters: `dynamics.<entity>.<field>` and, for pixels, `perception.<entity>.<field>`.

    A field that the engine would not look at (the torsional friction of a contact that has none, the force range of an
    actuator without a limit) is not in the table; asking for it says why.

    Args:
        model: compiled model; its present values are the nominal ones.
        name: of the model, in errors.
        stages: parameters of stages that the model stands for: name -> where they live. What they write has no other
            name.
    """

    def __init__(self, model: mujoco.MjModel, name: str, stages: Mapping[str, Address] | None = None) -> None:
        self.model, self.name, self._stages = model, name, dict(stages or {})
        # all at once and now: what is written into a live model later must not be taken for nominal
        fields = {place.field for address in self.addresses.values() for place in address.places}
        fields.add("body_inertia")  # which follows
        self._rows = {field: np.array(model_field(model, field), float) for field in sorted(fields)}

    @cached_property
    def _table(self) -> Table:
        table = self._table_of(self.model)
        owner = {(p.field, p.index): name for name, address in self._stages.items() for p in address.places}
        for name, address in list(table.addresses.items()):
            taken = [owner[p.field, p.index] for p in address.places if (p.field, p.index) in owner]
            if taken:
                del table.addresses[name]
                table.silent[name] = f"it is {taken[0]}, which is native"
        table.addresses |= self._stages
        return table

    def _table_of(self, model: Any) -> Table:
        """Return what the engine has."""
        return Table.of(model)

    @property
    def addresses(self) -> dict[str, Address]:
        """Every parameter: name -> where it lives."""
        return self._table.addresses

    @property
    def silent(self) -> dict[str, str]:
        """Fields that the engine does not look at in this model: name -> why."""
        return self._table.silent

    @cached_property
    def nominal(self) -> dict[str, float]:
        """Every parameter's value in the model: name -> number."""
        out = {}
        for name, address in self.addresses.items():
            row = self.nominal_row(address.place.field)
            if address.soft:
                out[name] = 1.0
            elif address.view:
                out[name] = float(
                    view_of(address.view, row[address.place.index], row[address.place.index])[address.component]
                )
            else:
                out[name] = float(address.place.value(row[address.place.index]))
        return out

    @cached_property
    def leaders(self) -> dict[int, dict[str, Address]]:
        """What the inertia of each body follows: body -> name -> address."""
        out: dict[int, dict[str, Address]] = {}
        for name, address in self.addresses.items():
            if address.leads >= 0:
                out.setdefault(address.leads, {})[name] = address
        return out

    def address(self, name: str) -> Address:
        """Return where a parameter lives.

        Raises:
            RobotError: there is no such parameter, or the engine would ignore it; the nearest names are listed.
        """
        if name in self.addresses:
            return self.addresses[name]
        if name in self.silent:
            raise RobotError(f"{self.name}: {name} would change nothing: {self.silent[name]}")
        raise RobotError(f"{self.name} has no parameter {name!r}{did_you_mean(name, self.addresses)}")

    def nominal_row(self, name: str) -> Array:
        """Return the array that a field held when the table was made: do not write into it."""
        return self._rows[name]


def model_field(model: Any, name: str) -> Any:
    """Return a field of a model by name: an array that is a view of it, or a number."""
    return getattr(model.opt, name[4:]) if name.startswith("opt.") else getattr(model, name)
