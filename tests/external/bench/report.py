"""What scripts/bench prints: the times, the ratios held against the bounds, the spread, the requests; and the same as JSON."""

import json
import statistics

from filesystems import BY_KEY, DEFAULT_MODE
from workloads import BOUNDS, LAYERS, ROWS

FUSE_OVERLAYFS = "fo-2.0.0"
OVERLAY = "overlay"
# Medians of a few rounds differ by this much though nothing else does: a ratio within it of its bound is met.
NOISE = 1.03
# Own bounds, which are no ratio to a peer: heap of the mount process in MiB, and 500 layers against one.
MEMORY_MIB = 400
LAYERS_RATIO = 1.2


def median(values):
    return statistics.median(values)


class Table:
    """Medians of a run: value(row, filesystem), None where it was not measured."""

    def __init__(self, samples, filesystems):
        self.samples = samples
        self.filesystems = filesystems
        self.rows = [row for row in ROWS if row.name in samples]

    def values(self, row, fs):
        return [sample["value"] for sample in self.samples.get(row, {}).get(fs, [])]

    def value(self, row, fs):
        values = self.values(row, fs)
        return median(values) if values else None

    def ratio(self, row, fs, other):
        value, against = self.value(row, fs), self.value(row, other)
        return value / against if value is not None and against else None

    def best(self, row, among):
        """The fastest of some filesystems, or None."""
        measured = [fs for fs in among if self.value(row, fs) is not None]
        return min(measured, key=lambda fs: self.value(row, fs)) if measured else None

    def best_peer(self, row):
        return self.best(row, [fs for fs in self.filesystems if BY_KEY[fs].is_peer])

    def best_mode(self, row):
        return self.best(row, [fs for fs in self.filesystems if BY_KEY[fs].is_layerfs])


def verdict(table, row):
    """What the bounds say of one row: a list of what is missed, empty if all is met; None if nothing can be said."""
    missed = []
    judged = False

    def hold(name, ratio, bound):
        nonlocal judged
        if ratio is not None and bound is not None:
            judged = True
            if ratio > bound * NOISE:
                missed.append(f"{name} {ratio:.2f}>{bound:g}")

    bound = BOUNDS[row.bound]
    held = table.best(row.name, bound.held)
    if row.name == "memory":
        for fs in (DEFAULT_MODE, "indexed"):
            value = table.value(row.name, fs)
            if value is not None:
                judged = True
                if value > MEMORY_MIB:
                    missed.append(f"{fs} {value:.0f}>{MEMORY_MIB} MiB")
        return missed if judged else None
    for what in ("mount", "lookup"):
        if row.name == f"{what}-{LAYERS[-1]}":
            one, many = table.value(f"{what}-1", "indexed"), table.value(row.name, "indexed")
            if one and many:
                hold("/1 layer", many / one, LAYERS_RATIO)
    if held is not None:
        hold("/fo2", table.ratio(row.name, held, FUSE_OVERLAYFS), bound.to_fuse_overlayfs)
        hold("/overlay", table.ratio(row.name, held, OVERLAY), bound.to_overlay)
    # In every row: as it comes, it does not lose.
    if held != DEFAULT_MODE or bound.to_fuse_overlayfs is None or bound.to_fuse_overlayfs > 1:
        hold("auto/fo2", table.ratio(row.name, DEFAULT_MODE, FUSE_OVERLAYFS), 1.0)
    return missed if judged else None


# --- words -----------------------------------------------------------------------------------------------------


def number(value):
    """Three digits that mean something."""
    if value is None:
        return "-"
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def ratio_words(value):
    return "-" if value is None else f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def lines_of(head, rows, left=(0,)):
    """Columns as wide as they need to be; those of `left` flush left, the others right."""
    table = [head, *rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    for line in table:
        cells = (cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths)))
        yield "  ".join(cells).rstrip()


def times(table):
    head = ["ms (medians)", *table.filesystems]
    rows = []
    for row in table.rows:
        name = row.name if row.unit == "ms" else f"{row.name}, {row.unit}"
        rows.append([name, *(number(table.value(row.name, fs)) for fs in table.filesystems)])
    return lines_of(head, rows)


def spread(table):
    """How far apart the rounds were: (highest - lowest) / median."""
    head = ["spread, %", *table.filesystems]
    rows = []
    for row in table.rows:
        line = [row.name]
        for fs in table.filesystems:
            values = table.values(row.name, fs)
            enough = len(values) > 1 and median(values) > 0
            line.append(f"{(max(values) - min(values)) / median(values) * 100:.0f}" if enough else "-")
        rows.append(line)
    return lines_of(head, rows)


def judgement(table):
    head = ["ratio of times", "auto/ext4", "/overlay", "/fo-2.0.0", "best peer", "best mode", "/overlay", "/fo-2.0.0", "verdict"]
    rows = []
    for row in table.rows:
        peer, mode = table.best_peer(row.name), table.best_mode(row.name)
        missed = verdict(table, row)
        words = "-" if missed is None else "met" if not missed else "MISSED " + ", ".join(missed)
        rows.append(
            [
                row.name,
                ratio_words(table.ratio(row.name, DEFAULT_MODE, "ext4")),
                ratio_words(table.ratio(row.name, DEFAULT_MODE, OVERLAY)),
                ratio_words(table.ratio(row.name, DEFAULT_MODE, FUSE_OVERLAYFS)),
                ratio_words(table.ratio(row.name, DEFAULT_MODE, peer)) if peer else "-",
                mode or "-",
                ratio_words(table.ratio(row.name, mode, OVERLAY)) if mode else "-",
                ratio_words(table.ratio(row.name, mode, FUSE_OVERLAYFS)) if mode else "-",
                words,
            ]
        )
    return lines_of(head, rows, left=(0, 5, 8))


def requests_of(samples):
    """Requests of one operation by kind, from the middle one of the samples by their sum."""
    middle = sorted(samples, key=lambda sample: sum(sample["requests"].values()))[len(samples) // 2]
    return {kind: count / middle["operations"] for kind, count in middle["requests"].items()}


def per_operation(count):
    return f"{count:,.0f}" if count >= 10 else f"{count:.2f}".rstrip("0").rstrip(".") if count >= 0.005 else "<0.01"


def requests(table):
    """Requests of the kernel per operation: in all for each mode, and by kind for the first one measured."""
    modes = [fs for fs in table.filesystems if BY_KEY[fs].is_layerfs]
    shown = DEFAULT_MODE if DEFAULT_MODE in modes else modes[0] if modes else None
    if shown is None:
        return []
    head = ["requests", "per", *modes, f"of {shown}"]
    rows = []
    for row in table.rows:
        line = [row.name, row.per]
        for fs in modes:
            samples = table.samples[row.name].get(fs, [])
            line.append(per_operation(sum(requests_of(samples).values())) if samples and row.per != "mount" else "-")
        samples = table.samples[row.name].get(shown, [])
        kinds = sorted(requests_of(samples).items(), key=lambda item: -item[1]) if samples else []
        more = [f"{kind} {per_operation(count)}" for kind, count in kinds if count >= 0.005][:5]
        line.append(", ".join(more) + (", ..." if len(kinds) > 5 else ""))
        if line[-1]:
            rows.append(line)
    return lines_of(head, rows, left=(0, 1, 2 + len(modes)))


def print_all(table):
    for part in (times(table), judgement(table), spread(table), requests(table)):
        lines = list(part)
        if lines:
            print("\n".join(lines) + "\n")


def as_json(table, about):
    rows = []
    for row in table.rows:
        measured = {}
        for fs in table.filesystems:
            samples = table.samples[row.name].get(fs)
            if samples:
                values = [sample["value"] for sample in samples]
                measured[fs] = {
                    "median": median(values),
                    "lowest": min(values),
                    "highest": max(values),
                    "samples": samples,
                    "to_overlay": table.ratio(row.name, fs, OVERLAY),
                    "to_fuse_overlayfs_2": table.ratio(row.name, fs, FUSE_OVERLAYFS),
                    "to_best_peer": table.ratio(row.name, fs, table.best_peer(row.name)) if table.best_peer(row.name) else None,
                }
        missed = verdict(table, row)
        rows.append({"name": row.name, "about": row.about, "unit": row.unit, "missed": missed, "filesystems": measured})
    return json.dumps({"about": about, "rows": rows}, indent=1)


def from_json(texts):
    """The samples and filesystems of several files that `as_json` made, put together, and what the first says of its run."""
    samples, filesystems, about = {}, [], None
    for text in texts:
        known = json.loads(text)
        about = about or known["about"]
        for row in known["rows"]:
            for fs, measured in row["filesystems"].items():
                samples.setdefault(row["name"], {}).setdefault(fs, []).extend(measured["samples"])
                if fs not in filesystems:
                    filesystems.append(fs)
    return samples, [fs for fs in BY_KEY if fs in filesystems], about
