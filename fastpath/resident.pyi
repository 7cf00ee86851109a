"""Keeps a mapped rule table in memory."""

from typing_extensions import Buffer

def keep(data: Buffer) -> str: ...
