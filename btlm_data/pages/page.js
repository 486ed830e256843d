// Details of the token under the pointer or the keyboard's focus. One stop of the Tab key for each sample; arrows move on.
"use strict";
for (const text of document.querySelectorAll(".text[data-sample]")) {
  const data = JSON.parse(document.getElementById(text.dataset.sample).textContent);
  const panel = document.getElementById(text.dataset.panel);
  const tokens = text.querySelectorAll("b");
  let here = 0;
  const index = new Map([...tokens].map((token, k) => [token, k]));

  const show = (k) => {
    const list = document.createElement("dl");
    const rows = [
      ["token", JSON.stringify(tokens[k].textContent)],
      ["id", data.ids[k]],
      ["position", data.positions ? k + " (position id " + data.positions[k] + ")" : k],
      ["label", data.labels[k] < 0 ? "none" : data.labels[k]],
      ["mask", data.mask[k] ? "1 (trained on)" : "0 (not trained on)"],
      ["document", data.documents.length ? data.documents[data.of[k]] : "not known"],
    ];
    for (const [name, value] of rows) {
      const cell = document.createElement("div");
      const term = document.createElement("dt");
      const description = document.createElement("dd");
      term.textContent = name;
      description.textContent = value;
      cell.append(term, description);
      list.append(cell);
    }
    panel.replaceChildren(list);
  };

  const move = (k) => {
    tokens[here].classList.remove("here");
    tokens[here].tabIndex = -1;
    here = Math.max(0, Math.min(tokens.length - 1, k));
    tokens[here].classList.add("here");
    tokens[here].tabIndex = 0;
    tokens[here].focus({ preventScroll: false });
    show(here);
  };

  if (!tokens.length) continue;
  tokens[0].tabIndex = 0;
  text.addEventListener("mouseover", (event) => {
    const token = event.target.closest("b");
    if (token) show(index.get(token));
  });
  text.addEventListener("click", (event) => {
    const token = event.target.closest("b");
    if (token) move(index.get(token));
  });
  text.addEventListener("focusin", (event) => {
    const token = event.target.closest("b");
    if (token) {
      here = index.get(token);
      show(here);
    }
  });
  text.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 20, ArrowUp: -20, PageDown: 200, PageUp: -200 };
    let to = null;
    if (event.key in steps) to = here + steps[event.key];
    else if (event.key === "Home") to = 0;
    else if (event.key === "End") to = tokens.length - 1;
    if (to !== null && !event.altKey && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      move(to);
    }
  });
}
