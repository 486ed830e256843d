// Keys for the links and buttons of a view, and the refreshing of a run's state. Everything works without it.
"use strict";
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "/") {
    const field = document.getElementById("query");
    const search = document.querySelector('.views a[href$="/search"]');
    if (field) field.focus();
    else if (search) search.click();
    event.preventDefault();
    return;
  }
  if (event.key === "?") {
    document.querySelector("footer").scrollIntoView();
    return;
  }
  const target = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key);
  if (target) {
    event.preventDefault();
    target.click();
  }
});
const fresh = document.querySelector("[data-refresh]");
if (fresh) setTimeout(() => location.reload(), 1000 * Number(fresh.dataset.refresh));
