"""The views of runs: one that prepares a dataset, and a training run step by step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import urlencode
from xml.etree.ElementTree import Element

from btlm_data.engine.status import Status
from btlm_data.pages.charts import bar, table
from btlm_data.pages.elements import add, tag
from btlm_data.serve.training import Taken
from btlm_data.serve.views import address, link
from btlm_data.wording import amount, counted, duration

MAX_LISTED = 20  # tasks that run elsewhere, or were put aside


def run(status: Status) -> list[Element]:
    """How far a run is."""
    state = status.run
    if state is None:
        return [tag("section", tag("p", "No step has begun yet.", role="status"), data_refresh="2")]
    is_at_work = state.state == "running" and status.driver_is_alive
    driver = state.driver.get("holder")
    if is_at_work:
        words = f"Running, driven by {driver}."
    elif state.state == "running":
        words = f"The driver ({driver}) is gone. Rerun its command; it continues from here."
    else:
        words = f"{state.state.capitalize()}." + (f" {state.message}" if state.message else "")
    updated = f"Written {duration(max(0.0, time.time() - state.updated))} ago. Engine: {state.engine}."
    content = [tag("p", words, role="status"), tag("p", updated, class_="quiet")]
    rows: list[list[Element | str]] = []
    for step in state.steps:
        done = step.done
        if step is state.steps[-1] and status.done_now is not None:
            done = max(done, status.done_now)
        share = step.units / step.weight if step.weight else 1.0
        rate = f"{amount(step.units / step.seconds, step.unit)}/s" if step.seconds > 0 and step.units else ""
        rows.append([
            step.name.replace(".", ": "), step.state, f"{done:,} of {step.tasks:,}", rate,
            duration(step.seconds), bar(min(1.0, share)),
        ])  # fmt: skip
    columns = ("step", "state", "tasks done", "throughput", "time", "")
    content.append(table(columns, rows, numbers=(2, 3, 4), caption="Steps"))
    running = [f"{step} {task}: {holder}" for step, task, holder in status.running]
    aside = [f"{failure.step}, {failure.title}: {failure.reasons[-1]}" for failure in status.failed]
    for heading, lines in (("Tasks running elsewhere", running), ("Tasks put aside", aside)):
        if lines:
            shown = tag("ul", *(tag("li", line) for line in lines[:MAX_LISTED]))
            content += [tag("h2", f"{heading}: {len(lines):,}"), shown]
    return [tag("section", *content, data_refresh="2" if is_at_work else None)]


def step_address(step: int, batch_index: int | None = None) -> str:
    """The address of a step of the training run."""
    query = {"step": step} | ({"batch_index": batch_index} if batch_index is not None else {})
    return f"/training?{urlencode(query)}"


def training(
    step: int, done: int, chance: int, taken: Sequence[Taken], chosen: Taken, names: Sequence[str]
) -> list[Element]:
    """The samples of one step. done: steps that the newest checkpoint includes; chance: a step drawn at
    random; chosen: the sample of the step that is shown below.
    """
    form = tag(
        "form",
        tag("label", "step ", tag("input", name="step", type="number", min="0", value=str(step))),
        tag(
            "label",
            "number in the batch ",
            tag("input", name="batch_index", type="number", min="0", value=str(chosen.batch_index)),
        ),
        tag("button", "Show"),
        action="/training",
        class_="line",
    )
    buttons = tag(
        "p",
        link("previous step", step_address(max(0, step - 1)), "p"),
        link("next step", step_address(step + 1), "n"),
        link("step at random", step_address(chance), "r"),
        tag("span", f" step {step:,}; the newest checkpoint includes {counted(done, 'step')}"),
        class_="buttons",
    )
    rows: list[list[Element | str]] = []
    for sample in taken:
        batch_index = link(f"{sample.batch_index:,}", step_address(step, sample.batch_index))
        if sample is chosen:
            batch_index.set("aria-current", "true")
        named: Element | str = f"{sample.shard}, row {sample.row:,}: of no dataset that is served"
        if sample.dataset is not None:
            name = f"{names[sample.dataset]}: {sample.split} {sample.number:,}"
            named = link(name, address(sample.dataset, "sample", split=sample.split, n=sample.number))
        rows.append([batch_index, str(sample.rank), tag("span", named)])
    listed = tag(
        "details",
        tag("summary", counted(len(taken), "sample") + " of this step"),
        table(
            ("number in the batch", "rank", "sample"),
            rows,
            numbers=(1,),
            caption=f"Samples of step {step:,}",
        ),
        open="open" if len(rows) <= MAX_LISTED else None,
    )
    return [form, buttons, add(tag("section"), listed)]
