"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") node.textContent = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== false && value !== null) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  };
  /* Order of a stack from below: photographs, label maps, drawn lines. */
  const RANK = { picture: 0, labels: 1, overlay: 2, lines: 3 };
  const state = {
    active: new Set(data.layers),
    stacked: false, beside: null, safe: false, sort: data.sort || "", ascending: data.ascending, text: "", cls: "",
    show: "", order: [], zoomed: -1, scale: 1, x: 0, y: 0,
  };
  const fmt = (v) => v === null || v === undefined ? "–" : Math.abs(v) >= 100 ? v.toFixed(0)
    : Number.isInteger(v) ? String(v) : Math.abs(v) >= 10 ? v.toFixed(1) : v.toFixed(3);

  /* Review: verdicts by image id, kept by the browser for the labels of this recipe, with the names
     of the images: other pages of the recipe may show some of them only, or another data set. */
  const KEYS = { a: "accept", x: "refuse", f: "full" };
  const SAID = { accept: "accepted", refuse: "refused", full: "to annotate fully" };
  const STORAGE = "wsis_d2 review " + data.review;
  const verdicts = new Map(), imageNames = new Map(data.items.map((i) => [i.id, i.name]));
  const isHere = ([id, , name]) => imageNames.get(id) === name;
  const kept = () => JSON.parse(localStorage.getItem(STORAGE) || "[]");
  if (data.review) {
    try {
      for (const entry of kept()) if (isHere(entry) && SAID[entry[1]]) verdicts.set(entry[0], entry[1]);
    } catch { /* no storage: verdicts last as long as the page */ }
  }
  function judge(card, verdict) {
    if (!card) return;
    verdict ? verdicts.set(card.item.id, verdict) : verdicts.delete(card.item.id);
    try {
      const mine = [...verdicts].map(([id, v]) => [id, v, imageNames.get(id)]);
      localStorage.setItem(STORAGE, JSON.stringify([...kept().filter((entry) => !isHere(entry)), ...mine]));
    } catch { /* as above */ }
    drawCard(card);
    drawReview();
  }
  function drawReview() {
    const count = (v) => [...verdicts.values()].filter((x) => x === v).length;
    $("review-count").textContent = `${verdicts.size} of ${cards.length} reviewed: `
      + Object.keys(SAID).map((v) => `${count(v)} ${SAID[v]}`).join(", ");
    $("review-export").disabled = !verdicts.size;
    const card = $("zoom").open ? state.order[state.zoomed] : null;
    for (const b of $("zoom-review").children)
      b.setAttribute("aria-pressed", String(Boolean(card) && verdicts.get(card.item.id) === b.dataset.verdict));
  }
  const reviewText = () => JSON.stringify({ kind: "wsis_d2 review", recipe: data.review,
    images: data.items.filter((i) => verdicts.has(i.id)).map((i) => ({ image_id: i.id, name: i.name, verdict: verdicts.get(i.id) })) }, null, 1);
  function exportReview() {
    const link = make("a", { href: URL.createObjectURL(new Blob([reviewText()], { type: "application/json" })), download: "review.json" });
    document.body.append(link);
    link.click();
    link.remove();
  }

  /* One pile of pictures: the photograph below, overlays above. */
  function sources(item, names) {
    const base = item.layers[data.base];
    const list = [];
    for (const name of names) {
      const layer = item.layers[name];
      if (layer) list.push(layer);
    }
    if (base && !list.includes(base) && !(list.length && list[0].kind === "picture")) list.unshift(base);
    return list.sort((a, b) => RANK[a.kind] - RANK[b.kind]);
  }
  function fill(pile, item, names, full) {
    const list = sources(item, names);
    pile.replaceChildren();
    list.forEach((layer, index) => {
      const src = (state.safe && layer.safe) || (!full && layer.thumb) || layer.src;
      const img = make("img", { src, alt: index === list.length - 1 ? `${names[names.length - 1] || data.base} of ${item.name}` : "",
        decoding: "async", draggable: "false" });
      if (index > 0 && state.stacked) img.style.opacity = $("opacity").value / 100;
      img.addEventListener("error", () => {
        if (!pile.querySelector(".failed")) pile.append(make("div", { class: "failed", text: "picture missing: " + src }));
      });
      pile.append(img);
    });
  }
  function panelNames(item) {
    const present = data.layers.filter((l) => state.active.has(l) && item.layers[l]);
    if (!present.length) return [];
    return state.stacked ? [present] : present.map((l) => [l]);
  }
  function panels(item, full) {
    return panelNames(item).map((names) => {
      const pile = make("div", { class: "pile" });
      pile.style.aspectRatio = `${item.width} / ${item.height}`;
      pile.names = names;
      if (full) fill(pile, item, names, true);
      return make("figure", { class: "panel" }, pile,
        make("figcaption", { text: names.length > 1 ? names.join(" + ") : names[0] }));
    });
  }

  /* Cards: built once, pictures only while near the view. */
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      entry.target.near = entry.isIntersecting;
      entry.isIntersecting ? load(entry.target) : unload(entry.target);
    }
  }, { rootMargin: "900px 0px" });
  const load = (card) => {
    if (card.stale) { card.stale = false; card.body.replaceChildren(...panels(card.item, false)); }
    for (const pile of card.querySelectorAll(".pile")) if (!pile.firstChild) fill(pile, card.item, pile.names, false);
  };
  const unload = (card) => { for (const pile of card.querySelectorAll(".pile")) pile.replaceChildren(); };
  const scoreList = (item) => Object.entries(item.scores).map(([name, value]) =>
    make("span", { class: "score" + (name === state.sort ? " by" : "") }, name + " ", make("b", { text: fmt(value) })));

  const cards = data.items.map((item, index) => {
    const card = make("article", { class: "card", role: "listitem", tabindex: index ? "-1" : "0" });
    card.item = item; card.index = index;
    card.addEventListener("click", () => openZoom(state.order.indexOf(card)));
    return card;
  });
  function drawCard(card) {
    const item = card.item;
    const label = [item.name, ...Object.entries(item.scores).map(([n, v]) => `${n} ${fmt(v)}`)].join(", ");
    const said = data.review && verdicts.has(item.id) ? ", " + SAID[verdicts.get(item.id)] : "";
    card.setAttribute("aria-label", label + said + ". Press Enter to enlarge.");
    card.body = make("div", { class: "panels" });
    card.stale = true;  /* panels are made when the card comes near */
    card.replaceChildren(
      make("div", { class: "head" }, make("h3", { text: item.name }), make("span", { class: "scores" }, ...scoreList(item))),
      card.body);
    const verdict = verdicts.get(item.id);
    if (data.review && verdict) card.querySelector(".head").append(make("span", { class: "verdict " + verdict, text: SAID[verdict] }));
    if (item.caption) card.append(make("p", { class: "caption", text: item.caption }));
    if (card.near) load(card);
  }
  const drawCards = () => { layout(); cards.forEach(drawCard); };

  function layout() {
    const size = +$("size").value;
    const count = state.stacked ? 1 : Math.max(1, state.active.size);
    const room = Math.max(200, $("grid").clientWidth);
    const wanted = Math.min(room, count * (size + 6) + 22);
    const style = $("grid").style;
    style.setProperty("--card", wanted + "px");
    style.setProperty("--panel-width", Math.min(size, room - 24) + "px");
    style.setProperty("--card-height", Math.round(size * 0.8 + 60) + "px");
  }

  function arrange() {
    const text = state.text.toLowerCase();
    const shown = cards.filter((c) => (!text || c.item.name.toLowerCase().includes(text))
      && (!state.cls || c.item.classes.includes(state.cls))
      && (!state.show || (verdicts.get(c.item.id) || "none") === state.show));
    const sign = state.ascending ? 1 : -1;
    const missing = (v) => v === null || v === undefined;
    shown.sort((a, b) => {
      if (!state.sort) return sign * (a.index - b.index);
      const x = a.item.scores[state.sort], y = b.item.scores[state.sort];
      if (missing(x) || missing(y)) return missing(x) - missing(y) || a.index - b.index;
      return sign * (x - y) || a.index - b.index;
    });
    state.order = shown;
    near.disconnect();
    cards.forEach((c) => { c.tabIndex = -1; c.near = false; });
    if (shown.length) shown[0].tabIndex = 0;
    $("grid").replaceChildren(...shown);
    shown.forEach((c) => near.observe(c));
    $("nothing").hidden = shown.length > 0;
    $("count").textContent = shown.length === cards.length ? `${cards.length}` : `${shown.length} of ${cards.length}`;
    const down = state.ascending;
    $("direction").textContent = state.sort ? (down ? "▲ lowest first" : "▼ highest first") : (down ? "▲ first to last" : "▼ last to first");
    $("direction").setAttribute("aria-label", $("direction").textContent.slice(2) + "; press to turn round");
  }

  /* Controls */
  function layerButtons(box) {
    box.replaceChildren(...data.layers.map((name, index) => make("button", {
      type: "button", "aria-pressed": String(state.active.has(name)), "data-layer": name,
      title: `${name} on or off (${index + 1})`, onclick: () => toggleLayer(index),
    }, name, index < 9 ? make("kbd", { text: String(index + 1), "aria-hidden": "true" }) : "")));
  }
  function pressLayers() {
    for (const box of [$("layers"), $("zoom-layers")])
      for (const b of box.children) b.setAttribute("aria-pressed", String(state.active.has(b.dataset.layer)));
  }
  function toggleLayer(index) {
    const name = data.layers[index];
    if (name === undefined) return;
    state.active.has(name) ? state.active.delete(name) : state.active.add(name);
    pressLayers();
    drawCards();
    if ($("zoom").open) drawZoom(true);
  }
  function toggleMode() {
    state.stacked = !state.stacked;
    if (state.stacked) {
      /* Several label maps over one another cannot be read: start with the first of them. */
      state.beside = new Set(state.active);
      const kinds = {};
      for (const item of data.items) for (const [n, l] of Object.entries(item.layers)) kinds[n] = l.kind;
      const first = data.layers.find((n) => state.active.has(n) && kinds[n] === "labels");
      state.active = new Set([...state.active].filter((n) => kinds[n] !== "labels" || n === first));
    } else if (state.beside) {
      state.active = state.beside;
    }
    pressLayers();
    $("mode").setAttribute("aria-pressed", String(state.stacked));
    $("opacity-box").hidden = !state.stacked;
    drawCards();
    if ($("zoom").open) drawZoom(false);
  }
  function togglePalette() {
    state.safe = !state.safe;
    $("palette").setAttribute("aria-pressed", String(state.safe));
    drawLegend(); drawCards();
    if ($("zoom").open) drawZoom(true);
  }
  function turnRound() { state.ascending = !state.ascending; arrange(); }
  function drawLegend() {
    $("legend").replaceChildren(...data.classes.map((c) => {
      const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
      if (state.safe) swatch.style.backgroundImage = `url(${c.safe})`; else swatch.style.backgroundColor = c.color;
      return make("span", { class: "key" + (c.isthing ? "" : " stuff"), title: c.isthing ? "thing" : "stuff" }, swatch, c.name);
    }));
    if (data.classes.length) {
      const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.backgroundImage = `url(${data.ignore})`;
      $("legend").append(make("span", { class: "key", title: "no label" }, swatch, "ignore"));
    }
  }
  function moveFocus(step) {
    const at = state.order.indexOf(document.activeElement);
    const next = state.order[Math.min(state.order.length - 1, Math.max(0, at < 0 ? 0 : at + step))];
    if (!next) return;
    state.order.forEach((c) => { c.tabIndex = -1; });
    next.tabIndex = 0;
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }

  /* Enlarged view: every panel zooms and moves together. */
  function openZoom(place) {
    if (place < 0 || place >= state.order.length) return;
    state.zoomed = place;
    if (!$("zoom").open) $("zoom").showModal();
    drawZoom(false);
    $("stage").focus();
  }
  function drawZoom(keep) {
    const item = state.order[state.zoomed].item;
    $("zoom-title").textContent = item.name;
    $("zoom-scores").className = "scores";
    $("zoom-scores").replaceChildren(...scoreList(item));
    const list = panels(item, true);
    $("stage").replaceChildren(...list);
    const room = $("stage").getBoundingClientRect();
    let best = 1, area = 0;
    for (let columns = 1; columns <= list.length; columns++) {
      const rows = Math.ceil(list.length / columns);
      const s = Math.min(room.width / columns / item.width, room.height / rows / item.height);
      if (s > area) { area = s; best = columns; }
    }
    $("stage").style.gridTemplateColumns = `repeat(${best}, 1fr)`;
    $("stage").style.gridAutoRows = "1fr";
    if (!keep) { state.scale = 1; state.x = 0; state.y = 0; }
    place();
    if (data.review) drawReview();
  }
  function place() {
    const item = state.order[state.zoomed].item;
    for (const panel of $("stage").children) {
      const pile = panel.firstChild;
      const w = panel.clientWidth, h = panel.clientHeight;
      const fit = Math.min(w / item.width, h / item.height);
      pile.style.width = item.width * fit + "px";
      pile.style.height = item.height * fit + "px";
      pile.style.left = (w - item.width * fit) / 2 + "px";
      pile.style.top = (h - item.height * fit) / 2 + "px";
      pile.style.transform = `translate(${state.x * w}px, ${state.y * h}px) scale(${state.scale})`;
    }
    $("zoom-level").textContent = Math.round(state.scale * 100) + " %";
  }
  function zoomBy(factor, panel, px, py) {
    const scale = Math.min(32, Math.max(1, state.scale * factor));
    const first = panel || $("stage").firstElementChild;
    if (!first) return;
    const pile = first.firstChild, w = first.clientWidth, h = first.clientHeight;
    const cx = (px === undefined ? w / 2 : px) - parseFloat(pile.style.left);
    const cy = (py === undefined ? h / 2 : py) - parseFloat(pile.style.top);
    state.x = (cx - (cx - state.x * w) * scale / state.scale) / w;
    state.y = (cy - (cy - state.y * h) * scale / state.scale) / h;
    state.scale = scale;
    if (scale === 1) { state.x = 0; state.y = 0; }
    place();
  }
  const moveBy = (dx, dy) => { state.x += dx; state.y += dy; place(); };
  function stepZoom(step) {
    const next = state.zoomed + step;
    if (next < 0 || next >= state.order.length) return;
    state.zoomed = next;
    drawZoom(false);
  }
  $("stage").addEventListener("wheel", (e) => {
    e.preventDefault();
    const panel = e.target.closest(".panel");
    if (!panel) return;
    const r = panel.getBoundingClientRect();
    zoomBy(Math.exp(-e.deltaY * 0.0015), panel, e.clientX - r.left, e.clientY - r.top);
  }, { passive: false });
  let drag = null;
  $("stage").addEventListener("pointerdown", (e) => {
    const panel = e.target.closest(".panel");
    if (panel) { drag = { panel, x: e.clientX, y: e.clientY }; panel.setPointerCapture(e.pointerId); }
  });
  $("stage").addEventListener("pointermove", (e) => {
    if (!drag) return;
    moveBy((e.clientX - drag.x) / drag.panel.clientWidth, (e.clientY - drag.y) / drag.panel.clientHeight);
    drag.x = e.clientX; drag.y = e.clientY;
  });
  for (const end of ["pointerup", "pointercancel"]) $("stage").addEventListener(end, () => { drag = null; });
  $("zoom").addEventListener("close", () => {
    const card = state.order[state.zoomed];
    if (card) { state.order.forEach((c) => { c.tabIndex = -1; }); card.tabIndex = 0; card.focus(); }
  });
  $("zoom-in").onclick = () => zoomBy(1.5);
  $("zoom-out").onclick = () => zoomBy(1 / 1.5);
  $("zoom-reset").onclick = () => zoomBy(1e-9);
  $("zoom-prev").onclick = () => stepZoom(-1);
  $("zoom-next").onclick = () => stepZoom(1);
  $("zoom-close").onclick = () => $("zoom").close();

  /* Set up */
  layerButtons($("layers")); layerButtons($("zoom-layers"));
  $("sort").append(make("option", { value: "", text: "given order" }),
    ...data.scores.map((s) => make("option", { value: s, text: s })));
  $("sort").value = state.sort;
  $("class").append(make("option", { value: "", text: "all" }), ...data.item_classes.map((c) => make("option", { value: c, text: c })));
  $("sort").onchange = (e) => { state.sort = e.target.value; arrange(); drawCards(); };
  $("class").onchange = (e) => { state.cls = e.target.value; arrange(); };
  $("find").oninput = (e) => { state.text = e.target.value; arrange(); };
  $("size").oninput = () => layout();
  $("mode").onclick = toggleMode;
  $("palette").onclick = togglePalette;
  $("direction").onclick = turnRound;
  $("help-open").onclick = () => $("help").showModal();
  $("opacity").oninput = () => {
    for (const img of document.querySelectorAll(".pile img:not(:first-child)")) img.style.opacity = $("opacity").value / 100;
  };
  addEventListener("resize", () => { layout(); if ($("zoom").open) place(); });
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || $("help").open) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName);
    if (typing) { if (e.key === "Escape" && e.target.id === "find") e.target.blur(); return; }
    const zoom = $("zoom").open;
    const digit = "123456789".indexOf(e.key);
    const judged = data.review && (KEYS[e.key] || e.key === "u");
    const focused = zoom ? state.order[state.zoomed] : document.activeElement.classList.contains("card") ? document.activeElement : null;
    if (e.key.length === 1 && digit >= 0) toggleLayer(digit);
    else if (judged && focused) {
      judge(focused, KEYS[e.key]);
      if (KEYS[e.key]) zoom ? stepZoom(1) : moveFocus(1);
    } else if (e.key === "m") toggleMode();
    else if (e.key === "p") togglePalette();
    else if (zoom && (e.key === "+" || e.key === "=")) zoomBy(1.5);
    else if (zoom && (e.key === "-" || e.key === "_")) zoomBy(1 / 1.5);
    else if (zoom && e.key === "0") zoomBy(1e-9);
    else if (zoom && (e.key === "n" || e.key === "j")) stepZoom(1);
    else if (zoom && (e.key === "b" || e.key === "k")) stepZoom(-1);
    else if (zoom && e.key.startsWith("Arrow")) {
      const step = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[e.key];
      if (step) moveBy(...step);
    } else if (!zoom && (e.key === "j" || e.key === "ArrowRight")) moveFocus(1);
    else if (!zoom && (e.key === "k" || e.key === "ArrowLeft")) moveFocus(-1);
    else if (!zoom && e.key === "Enter" && e.target.classList.contains("card")) openZoom(state.order.indexOf(e.target));
    else if (!zoom && e.key === "r") turnRound();
    else if (!zoom && e.key === "s") $("sort").focus();
    else if (!zoom && e.key === "/") $("find").focus();
    else if (e.key === "?") $("help").showModal();
    else return;
    e.preventDefault();
  });
  if (data.review) {
    $("review").hidden = $("zoom-review").hidden = false;
    $("zoom-review").replaceChildren(...Object.entries(KEYS).map(([key, verdict]) => make("button", {
      type: "button", "aria-pressed": "false", "data-verdict": verdict, title: `${SAID[verdict]} (${key})`,
      onclick: () => { const card = state.order[state.zoomed]; judge(card, verdicts.get(card.item.id) === verdict ? "" : verdict); },
    }, { accept: "Accept", refuse: "Refuse", full: "Annotate fully" }[verdict], make("kbd", { text: key, "aria-hidden": "true" }))));
    $("review-export").onclick = exportReview;
    $("review-show").onchange = (e) => { state.show = e.target.value; arrange(); };
    drawReview();
  } else for (const line of document.querySelectorAll("#help .review")) line.remove();
  if (!data.items.length) $("bar").hidden = true;
  if (!data.has_safe) $("palette").hidden = true;
  drawLegend();
  arrange();
  drawCards();
})();
