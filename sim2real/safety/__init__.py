"""Safety that trusts neither the world model nor the planner.

- `limits.py`: what must never be exceeded
- `braking.py`: how soon the robot can stop
- `clearance.py`: how far it is from what it must not touch
- `watchdog.py`: whether readings can be relied on
- `filter.py`: all of it, around a policy
"""

from sim2real.safety.braking import Braking
from sim2real.safety.clearance import Clearance
from sim2real.safety.filter import SafetyFilter, viable
from sim2real.safety.limits import Limits
from sim2real.safety.watchdog import Watchdog

__all__ = ["Braking", "Clearance", "Limits", "SafetyFilter", "Watchdog", "viable"]
