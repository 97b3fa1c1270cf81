"use strict";
(() => {
  const root = document.documentElement, tip = document.getElementById("tip");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const kept = (() => { try { return localStorage.getItem("lowrank-theme"); } catch { return null; } })();
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("lowrank-theme", root.dataset.theme); } catch { /* a file without storage keeps nothing */ }
  });

  // The titles of marks as tooltips that appear at once and on touch.
  const show = (event) => {
    const mark = event.target.closest && event.target.closest(".panel svg *");
    const title = mark && (mark.dataset.tip || (mark.querySelector(":scope > title") || {}).textContent);
    if (!title) { tip.hidden = true; return; }
    if (!mark.dataset.tip) { mark.dataset.tip = title; mark.querySelector(":scope > title").remove(); }
    tip.textContent = title;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(innerWidth - box.width - 8, event.clientX + 14)) + "px";
    tip.style.top = (event.clientY > box.height + 20 ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // A click on a legend's entry brings that method forward in every figure.
  const picked = new Set();
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-key]");
    if (!button) return;
    const key = button.dataset.key;
    picked.has(key) ? picked.delete(key) : picked.add(key);
    document.body.classList.toggle("picked", picked.size > 0);
    for (const b of document.querySelectorAll("button[data-key]")) b.setAttribute("aria-pressed", picked.has(b.dataset.key));
    for (const g of document.querySelectorAll("svg g[data-series]")) g.classList.toggle("on", picked.has(g.dataset.series) || !known.has(g.dataset.series));
  });
  const known = new Set([...document.querySelectorAll("button[data-key]")].map((b) => b.dataset.key));

  addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details.more")) d.open = true; });
  if (matchMedia("(max-width: 999px)").matches) document.querySelector("nav details").open = false;
})();
