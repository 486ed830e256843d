// What the theme leaves to the mouse can be done by keyboard: tables that scroll sideways, and on a narrow screen the menu, its
// sections and the search, which are labels of hidden boxes.
"use strict";
const narrow = matchMedia("(max-width: 76.2344em)");
const reach = () => {
  for (const frame of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) {
    frame.tabIndex = 0;
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", "Table");
  }
};
const names = { __drawer: "Menu", __search: "Search", __toc: "On this page" };
const operate = () => {
  for (const label of document.querySelectorAll(".md-header__button[for], .md-nav__link[for], .md-nav__title[for]")) {
    if (narrow.matches) {
      label.tabIndex = 0;
      label.setAttribute("role", "button");
      if (!label.textContent.trim()) label.setAttribute("aria-label", names[label.htmlFor]);
    } else {
      label.removeAttribute("tabindex");
      label.removeAttribute("role");
    }
  }
};
document.addEventListener("keydown", (event) => {
  if (event.target.matches("label[role=button]") && event.key === " ") {  // the theme itself takes Enter
    event.preventDefault();
    event.target.click();
  }
});
new MutationObserver(reach).observe(document.body, { childList: true, subtree: true });
narrow.addEventListener("change", operate);
reach();
operate();
