"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = (id) => document.getElementById(id);
  const WINDOWS = { soft: [-160, 240], lung: [-1100, 300], bone: [-450, 1050], brain: [0, 80] };
  const shown = data.structures.map((s) => s.layer !== null);
  const nv = new niivue.Niivue({
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    dragAndDropEnabled: false,
    show3Dcrosshair: true,
    multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
    crosshairWidth: 0.6,
    crosshairColor: [0.9, 0.9, 0.9, 0.7],
    backColor: [0.063, 0.071, 0.078, 1],
    loadingText: "",
    logLevel: "error",
  });

  function colours(layer) {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    data.structures.forEach((s, i) => {
      if (s.layer !== layer) return;
      map.R.push(s.colour[0]);
      map.G.push(s.colour[1]);
      map.B.push(s.colour[2]);
      map.A.push(shown[i] ? 255 : 0);
      map.I.push(s.label);
      map.labels.push(s.name);
    });
    // Labels of a layer count from 1 in the order they were placed, which is not the order of the list.
    const order = map.I.map((_, k) => k).sort((a, b) => map.I[a] - map.I[b]);
    for (const key of Object.keys(map)) map[key] = order.map((k) => map[key][k]);
    return map;
  }

  function repaint(layers) {
    for (const layer of layers) nv.volumes[layer + 1].setColormapLabel(colours(layer));
    nv.updateGLVolume();
  }

  function show(indices, on) {
    const layers = new Set();
    for (const i of indices) {
      const s = data.structures[i];
      if (s.layer === null || shown[i] === on) continue;
      shown[i] = on;
      layers.add(s.layer);
      const row = by(`structure-${i}`);
      row.classList.toggle("off", !on);
      row.querySelector("input").checked = on;
    }
    if (layers.size) repaint(layers);
  }

  function go(s) {
    if (!s.centre) return;
    nv.scene.crosshairPos = nv.mm2frac(s.centre);
    nv.createOnLocationChange();
    nv.drawScene();
  }

  function millilitres(ml) {
    return `${ml < 1 ? ml.toFixed(2) : ml < 100 ? ml.toFixed(1) : Math.round(ml).toLocaleString("en")} ml`;
  }

  function list() {
    const rows = by("structures");
    let group = "";
    data.structures.forEach((s, i) => {
      if (s.group !== group) {
        group = s.group;
        const heading = document.createElement("li");
        heading.className = "group";
        heading.textContent = group;
        rows.append(heading);
      }
      const row = document.createElement("li");
      row.id = `structure-${i}`;
      row.classList.toggle("empty", s.layer === null);
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = shown[i];
      box.disabled = s.layer === null;
      box.setAttribute("aria-label", `show ${s.name}`);
      box.addEventListener("change", () => show([i], box.checked));
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = s.css;
      const name = document.createElement("button");
      name.className = "name";
      name.textContent = s.name;
      name.title = s.note ? `${s.name} (${s.note})` : s.name;
      name.addEventListener("click", () => go(s));
      const ml = document.createElement("span");
      ml.className = "ml";
      ml.textContent = s.layer === null ? "not found" : millilitres(s.ml);
      row.append(box, swatch, name, ml);
      rows.append(row);
    });
  }

  function controls() {
    const views = {
      multi: nv.sliceTypeMultiplanar,
      axial: nv.sliceTypeAxial,
      coronal: nv.sliceTypeCoronal,
      sagittal: nv.sliceTypeSagittal,
      render: nv.sliceTypeRender,
    };
    const buttons = [...by("views").children];
    const choose = (view) => {
      nv.setSliceType(views[view]);
      for (const b of buttons) b.setAttribute("aria-pressed", b.dataset.view === view);
    };
    for (const b of buttons) b.addEventListener("click", () => choose(b.dataset.view));
    choose("multi");
    by("window-line").hidden = !data.ct;
    by("window").addEventListener("change", (event) => {
      const range = WINDOWS[event.target.value] || data.window;
      [nv.volumes[0].cal_min, nv.volumes[0].cal_max] = range;
      nv.updateGLVolume();
    });
    by("opacity").addEventListener("input", (event) => {
      for (let k = 1; k < nv.volumes.length; k++) nv.volumes[k].opacity = event.target.value / 100;
      nv.updateGLVolume();
    });
    const kept = () => {
      const text = by("filter").value.trim().toLowerCase();
      return data.structures.map((s, i) => (s.name.toLowerCase().includes(text) ? i : -1)).filter((i) => i >= 0);
    };
    by("filter").addEventListener("input", () => {
      const found = new Set(kept());
      data.structures.forEach((_, i) => (by(`structure-${i}`).hidden = !found.has(i)));
    });
    by("all").addEventListener("click", () => show(kept(), true));
    by("none").addEventListener("click", () => show(kept(), false));
  }

  function place(location) {
    const mm = location.mm;
    const [x, y, z] = [mm[0], mm[1], mm[2]].map((v) => Math.abs(v).toFixed(0));
    const side = `${mm[0] < 0 ? "L" : "R"} ${x}  ${mm[1] < 0 ? "P" : "A"} ${y}  ${mm[2] < 0 ? "I" : "S"} ${z} mm`;
    const names = [];
    location.values.slice(1).forEach((v, layer) => {
      const s = data.structures.find((t) => t.layer === layer && t.label === Math.round(v.value));
      if (s) names.push(s.group ? `${s.name} (${s.group})` : s.name);
    });
    const value = location.values.length ? location.values[0].value : NaN;
    const intensity = data.ct ? `${Math.round(value)} HU` : Number(value.toPrecision(4));
    by("place").textContent = `${side}   ${intensity}\n${names.reverse().join(", ")}`;
  }

  async function start() {
    by("title").textContent = data.title;
    by("note").textContent = data.steps.some((s) => s > 1)
      ? `The picture has a voxel for each ${data.steps.join(" × ")} of the scan; volumes are of the whole.`
      : "";
    list();
    await nv.attachToCanvas(by("canvas"));
    const image = (base64, name, more) => niivue.NVImage.loadFromBase64({ base64, name, ...more });
    const [low, high] = data.window;
    const volumes = [await image(data.scan, "scan.nii.gz", { colormap: "gray", cal_min: low, cal_max: high })];
    for (let k = 0; k < data.layers.length; k++) {
      const layer = await image(data.layers[k], `layer${k}.nii.gz`, { opacity: 0.5 });
      layer.setColormapLabel(colours(k));
      volumes.push(layer);
    }
    nv.volumes = volumes;
    nv.setVolume(volumes[0], 0); // all at once: each call looks at all volumes again
    nv.onLocationChange = place;
    controls();
    const first = data.structures.filter((s) => s.centre).sort((a, b) => b.ml - a.ml)[0];
    if (first) go(first);
    document.documentElement.dataset.ready = "true";
  }

  window.satunet = { nv, data, go, show };
  start().catch((error) => {
    by("problem").hidden = false;
    by("problem").textContent = `This browser cannot show the scan: ${error.message || error}. It needs WebGL 2.`;
    console.error(error);
  });
})();
