// SPDX-License-Identifier: MIT
// The report's page: draws plots, changes light and dark, sorts and filters the table of cells.
"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const narrow = window.matchMedia("(max-width: 500px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const shown = new Map(); // element of a plot that is drawn -> its variant

  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // ---- light and dark ----

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const button = document.getElementById("theme");

  function themeChanged() {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${button.textContent.toLowerCase()} colours`);
    for (const [plot, variant] of shown) draw(plot, variant);
  }

  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("emu-theme", root.dataset.theme);
    } catch {
      // Some browsers keep nothing for files; the choice then holds for this view.
    }
    themeChanged();
  });

  // ---- plots ----

  function laidOut(variant) {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = (given) => ({
      ...given,
      title: given.title && { ...given.title, standoff: 8 },
      automargin: true,
      gridcolor: colour("grid"),
      linecolor: colour("line"),
      zerolinecolor: colour("line"),
      fixedrange: narrow.matches, // a finger scrolls the page
    });
    const { tall, square, ...layout } = variant.layout;
    const wide = Math.min(root.clientWidth, 640) - 60;
    return {
      ...layout,
      height: tall || (square ? Math.max(320, Math.min(460, wide)) : 400),
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("text"), family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: colour("panel"), font: { color: colour("text") }, namelength: -1 },
      margin: { l: 12, r: 12, t: 12, b: 12 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: -0.2, yanchor: "top", yref: "paper" },
      showlegend: !square,
    };
  }

  function draw(plot, variant) {
    shown.set(plot, variant);
    const layout = laidOut(variant);
    plot.style.height = `${layout.height}px`;
    const options = {
      responsive: true,
      displaylogo: false,
      displayModeBar: narrow.matches ? false : "hover",
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", filename: plot.id },
    };
    const traces = structuredClone(variant.traces);
    return Plotly.react(plot, traces, layout, options);
  }

  function decoded(text) {
    return new DOMParser().parseFromString(String(text), "text/html").documentElement.textContent;
  }

  // The same as numbers, for who cannot see or wants to copy them.
  function numbers(variant) {
    const table = element("table", "");
    const head = table.createTHead().insertRow();
    const body = table.createTBody();
    const [first] = variant.traces;
    if (first.type === "heatmap") {
      head.append(element("th", "to \\ from", { scope: "col" }));
      first.z[0].forEach((_, from) => head.append(element("th", from, { scope: "col" })));
      first.z.forEach((row, to) => {
        const line = body.insertRow();
        line.append(element("th", to, { scope: "row" }), ...row.map((n) => element("td", n)));
      });
      return table;
    }
    const across = first.orientation === "h" ? "y" : "x";
    const value = across === "y" ? "x" : "y";
    const axis = variant.layout[`${across}axis`];
    const label = (at) => {
      const tick = (axis.tickvals || []).indexOf(at);
      return tick < 0 ? at : axis.ticktext[tick];
    };
    const columns = [...new Set(variant.traces.flatMap((trace) => trace[across]))];
    if (across === "x") columns.sort((a, b) => a - b);
    head.append(element("th", across === "x" ? axis.title.text : "", { scope: "col" }));
    for (const trace of variant.traces) {
      head.append(element("th", decoded(trace.name), { scope: "col" }));
    }
    for (const at of columns) {
      const line = body.insertRow();
      line.append(element("th", decoded(label(at)), { scope: "row" }));
      for (const trace of variant.traces) {
        const found = trace[value][trace[across].indexOf(at)];
        line.append(element("td", found === undefined || found === null ? "-" : found));
      }
    }
    return table;
  }

  function show(figure) {
    const plot = figure.querySelector(".plot");
    const variants = figures[plot.id];
    const selects = [...figure.querySelectorAll("select")];
    const wanted = () =>
      variants.find((v) => selects.every((select) => v.choice[select.name] === select.value));
    const details = figure.querySelector("details");
    const region = details.querySelector(".scroll");
    const fill = () => {
      const found = shown.get(plot);
      if (details.open) region.replaceChildren(found ? numbers(found) : "");
    };
    const update = () => {
      const found = wanted();
      plot.hidden = !found;
      figure.querySelector(".none").hidden = Boolean(found);
      if (found) draw(plot, found);
      else shown.delete(plot);
      fill();
    };
    for (const select of selects) select.addEventListener("change", update);
    details.addEventListener("toggle", fill);
    update();
  }

  // A section is drawn when it is opened for the first time.
  for (const sweep of document.querySelectorAll("details.sweep")) {
    const open = () => {
      if (!sweep.open || sweep.dataset.drawn) return;
      sweep.dataset.drawn = "yes";
      for (const figure of sweep.querySelectorAll("figure")) show(figure);
    };
    sweep.addEventListener("toggle", open);
    open();
  }
  for (const link of document.querySelectorAll("nav a")) {
    link.addEventListener("click", () => {
      const target = document.querySelector(link.hash);
      if (target && target.matches("details")) target.open = true;
    });
  }

  // ---- the table of cells ----

  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const text = document.getElementById("filter");
  const selects = [...document.querySelectorAll(".filters select")];

  function filter() {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const row of body.rows) {
      const content = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      const fits =
        words.every((word) => content.includes(word)) &&
        selects.every((s) => !s.value || row.cells[s.dataset.column].textContent === s.value);
      row.hidden = !fits;
      visible += fits;
    }
    document.getElementById("count").textContent = `${visible} of ${body.rows.length} cells`;
  }

  function sort(heading) {
    const column = heading.cellIndex;
    const down = heading.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const numeric = heading.classList.contains("number");
    const compare = (a, b) =>
      numeric
        ? (key(a) === "" ? -1 : Number(key(a))) - (key(b) === "" ? -1 : Number(key(b)))
        : key(a).localeCompare(key(b));
    const rows = [...body.rows].sort((a, b) => (down ? -compare(a, b) : compare(a, b)));
    body.append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  for (const heading of table.tHead.rows[0].cells) {
    heading.querySelector("button").addEventListener("click", () => sort(heading));
  }
  text.addEventListener("input", filter);
  for (const select of selects) select.addEventListener("change", filter);
  document.getElementById("clear").addEventListener("click", () => {
    text.value = "";
    for (const select of selects) select.value = "";
    filter();
  });
  filter();

  dark.addEventListener("change", themeChanged);
  narrow.addEventListener("change", themeChanged);
  try {
    const chosen = localStorage.getItem("emu-theme");
    if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  } catch {
    // As above.
  }
  themeChanged();
})();
