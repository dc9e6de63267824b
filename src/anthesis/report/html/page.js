"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const NARROW = 640;

  // --- rows ---------------------------------------------------------------------------------------------------------

  function show(number) {
    const row = document.getElementById(`row-${number}`);
    for (const other of document.querySelectorAll(".row.hit")) other.classList.remove("hit");
    row.classList.add("hit");
    history.replaceState(null, "", `#row-${number}`);
    row.scrollIntoView({ block: "center", behavior: still.matches ? "auto" : "smooth" });
    row.focus({ preventScroll: true });
  }

  function raw(name) {
    return JSON.stringify(JSON.parse(document.getElementById(name).textContent), null, 2);
  }

  function save(name, file) {
    const address = URL.createObjectURL(new Blob([raw(name) + "\n"], { type: "application/json" }));
    const link = Object.assign(document.createElement("a"), { href: address, download: file });
    link.click();
    URL.revokeObjectURL(address);
  }

  async function copy(button) {
    const code = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // not allowed here: then at least it is selected
      button.textContent = "Selected";
    }
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#row-"]');
    const button = event.target.closest("button");
    if (link) {
      event.preventDefault();
      show(link.getAttribute("href").slice("#row-".length));
    } else if (button?.dataset.show) {
      const shown = document.getElementById(button.dataset.show.replace("raw-", "shown-"));
      shown.textContent ||= raw(button.dataset.show);
      shown.hidden = !shown.hidden;
      button.textContent = shown.hidden ? "Show" : "Hide";
      button.setAttribute("aria-expanded", String(!shown.hidden));
    } else if (button?.dataset.save) {
      save(button.dataset.save, button.dataset.name);
    } else if (button?.dataset.copy) {
      copy(button);
    }
  });

  // --- charts -------------------------------------------------------------------------------------------------------

  // What stands in the figures as "var(--name)" becomes the colour that the page has under that name now.
  function coloured(value, style) {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
  }

  function merged(base, more) {
    const result = { ...base };
    for (const [key, value] of Object.entries(more)) {
      const both = [result[key], value].every((x) => x && typeof x === "object" && !Array.isArray(x));
      result[key] = both ? merged(result[key], value) : value;
    }
    return result;
  }

  function layout(figure, width) {
    const axis = { gridcolor: "var(--rule)", linecolor: "var(--rule)", zerolinecolor: "var(--rule)", automargin: true };
    const base = {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "var(--ink)" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 56, r: 24, t: 8, b: 48 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1, yanchor: "bottom" },
      hoverlabel: { bgcolor: "var(--card)", bordercolor: "var(--muted)", font: { color: "var(--ink)" }, align: "left" },
      hovermode: "closest",
      dragmode: false,
      showlegend: true,
      xaxis: axis,
      yaxis: axis,
    };
    const own = merged(base, figure.layout);
    if (width >= NARROW) return merged(own, figure.wide);
    return merged(merged(own, { margin: { l: 44, r: 12 }, legend: { font: { size: 10 } } }), figure.narrow);
  }

  function draw(name) {
    const plot = document.getElementById(`chart-${name}`);
    const style = getComputedStyle(document.documentElement);
    const described = layout(figures[name], plot.clientWidth);
    Plotly.react(plot, coloured(figures[name].data, style), coloured(described, style), {
      displayModeBar: false,
      responsive: true,
      scrollZoom: false,
      doubleClick: false,
    });
  }

  // What Plotly would show of a text, in which "<" and the like are written as references.
  function plain(text) {
    const characters = { "&lt;": "<", "&gt;": ">", "&amp;": "&" };
    return text.replaceAll("<br>", ": ").replace(/&(lt|gt|amp);/g, (reference) => characters[reference]);
  }

  // A mark can be reached by keyboard, says what it is, and leads to its row.
  function makeReachable(plot) {
    for (const mark of plot.querySelectorAll("path.point, g.point > path")) {
      const { trace } = mark.closest("g.trace").__data__[0];
      const { i } = mark.__data__ ?? mark.parentNode.__data__;
      mark.dataset.mark = trace.customdata[i];
      mark.setAttribute("tabindex", "0");
      mark.setAttribute("role", "link");
      mark.setAttribute("aria-label", plain(trace.hovertext[i]));
    }
  }

  function drawAll() {
    for (const name of Object.keys(figures)) draw(name);
  }

  drawAll();
  for (const name of Object.keys(figures)) {
    const plot = document.getElementById(`chart-${name}`);
    makeReachable(plot);
    plot.on("plotly_afterplot", () => makeReachable(plot));
    plot.on("plotly_click", (event) => {
      const number = event.points.map((point) => point.customdata).find((found) => found !== undefined);
      if (number !== undefined) show(number);
    });
    plot.addEventListener("keydown", (event) => {
      const number = event.target.dataset?.mark;
      if (number !== undefined && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        show(number);
      }
    });
  }
  dark.addEventListener("change", drawAll);
  matchMedia("print").addEventListener("change", drawAll);
  matchMedia(`(max-width: ${NARROW + 60}px)`).addEventListener("change", drawAll);
  const asked = /^#row-(\w+)$/.exec(location.hash);
  if (asked && document.getElementById(`row-${asked[1]}`)) show(asked[1]);
})();
