// Marks tables that are wider than their column, and those of them that are scrolled to their end. Reads nothing.
document.addEventListener("DOMContentLoaded", () => {
  const boxes = [...document.querySelectorAll(".scroll")];
  const mark = (box) => {
    box.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
    box.classList.toggle("at-end", box.scrollLeft + box.clientWidth >= box.scrollWidth - 1);
  };
  const watch = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target.closest(".scroll"))));
  for (const box of boxes) {
    mark(box);
    box.addEventListener("scroll", () => mark(box), { passive: true });
    watch.observe(box);
    if (box.firstElementChild) watch.observe(box.firstElementChild);
  }
});
