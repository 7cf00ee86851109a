"""Cells as Python objects; used by other native modules alone."""

import datetime

EPOCH: datetime.datetime
