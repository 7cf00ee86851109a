"""The agents' vocabulary as a Cedar schema: what policies can say when a user has no schema of their own.

The context's groups are made from the live-state columns, so that the schema and what the sidecar sets cannot differ.
"""

from fastpath.columns import COLUMNS

ENTITIES = """\
// Agents, their accountable owners, the tools they call and where calls go.
entity Team;
entity Person in [Team] { active: Bool, risk: Long };
entity AgentClass in [AgentClass];
entity Agent in [AgentClass] {
  status: String,          // "active", "quarantined" or "retired"
  clearance: Long,         // highest data level it may touch, 0 to 4
  owner?: Person           // the human who answers for it
};
entity Zone in [Zone];
entity Destination in [Zone] { max_level: Long };
entity Server in [Destination] { pinned: Bool };
entity ToolGroup in [ToolGroup];
entity Tool in [ToolGroup, Server] {
  level: Long,             // data level that the tool exposes, 0 to 4
  labels: Set<String>,     // "pii", "secret", ..
  untrusted_output: Bool,  // its results can carry third-party text
  reversible: Bool,        // what it does can be undone
  pinned: Bool             // its description is the one that was reviewed
};
entity Endpoint in [Server];
"""

ACTIONS = """\
// Classes of actions. What a policy says of `change` holds for every action below it.
action observe, change, egress;
action list, read in [observe] appliesTo { principal: [Agent], resource: [Tool, Endpoint], context: Ctx };
action write, delete, execute, admin in [change]
  appliesTo { principal: [Agent], resource: [Tool, Endpoint], context: Ctx };
action send in [change, egress] appliesTo { principal: [Agent], resource: [Tool, Endpoint], context: Ctx };
"""

_TYPES = {"bool": "Bool", "long": "Long", "string": "String", "set": "Set<String>"}
_ENTITY_TYPES = {"dest": "Destination", "task.owner": "Person"}
_HTTP = "type HttpCtx = { host: String, method: String, path: String, scheme: String };"


def context_types() -> str:
    """The type declarations of `context`: one per group of columns, `HttpCtx`, and `Ctx` of all of them."""
    groups: dict[str, list[str]] = {}
    members: list[str] = []
    for path, kind, absent in COLUMNS:
        group, _, name = path.partition(".")
        type_ = _ENTITY_TYPES[path] if kind == "entity" else _TYPES[kind]
        if not name:
            members.append(f"{group}: {type_}")
            continue
        if group not in groups:
            members.append(f"{group}: {group.capitalize()}Ctx")
        groups.setdefault(group, []).append(f"{name}{'?' if absent is None else ''}: {type_}")
    lines = [f"type {group.capitalize()}Ctx = {{\n  {_wrapped(fields)}\n}};" for group, fields in groups.items()]
    return "\n".join([*lines, _HTTP, f"type Ctx = {{\n  {_wrapped([*members, 'http?: HttpCtx'])}\n}};\n"])


def _wrapped(fields: list[str], width: int = 100) -> str:
    """Fields joined by commas, in lines of at most `width` characters."""
    lines = [""]
    for i, one in enumerate(fields):
        text = one if i == len(fields) - 1 else one + ","
        if lines[-1] and len(lines[-1]) + len(text) + 1 > width:
            lines.append("")
        lines[-1] += f" {text}" if lines[-1] else text
    return "\n  ".join(lines)


def vocabulary() -> str:
    """The whole schema, as Cedar schema text."""
    return "\n".join((ENTITIES, "// The context is set by the sidecar alone.", context_types(), ACTIONS))
