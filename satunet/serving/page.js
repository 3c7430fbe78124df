"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const state = { scan: null, job: null, asking: false, ending: false, image: null, shown: [], volumes: 0 };
  const nv = new niivue.Niivue({
    isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false, show3Dcrosshair: true,
    crosshairWidth: 0.6, crosshairColor: [0.9, 0.9, 0.9, 0.7],
    backColor: [0.063, 0.071, 0.078, 1], loadingText: "", logLevel: "error",
    onLocationChange: (where) => { by("place").textContent = where.string; },
  });
  window.viewer = nv;

  function headers(more) {
    const token = by("token").value;
    return token ? { ...more, Authorization: `Bearer ${token}` } : { ...more };
  }

  async function call(path, options = {}) {
    const answer = await fetch(path, { ...options, headers: headers(options.headers) });
    if (answer.status === 401) by("token-line").hidden = false;
    if (!answer.ok) {
      let told = answer.statusText;
      try {
        const detail = (await answer.json()).detail;
        told = typeof detail === "string" ? detail : detail.map((d) => d.msg).join("; ");
      } catch { /* no JSON */ }
      throw new Error(told);
    }
    return answer;
  }

  const json = async (path, options) => (await call(path, options)).json();
  const problem = (error) => { by("problem").textContent = error ? error.message || String(error) : ""; };

  function ready(on) {
    for (const id of ["words", "go", "everything"]) by(id).disabled = !on;
  }

  // One file as it is; several, as of a folder, as one archive.
  async function bring(files) {
    files = files.filter((f) => !f.name.startsWith("."));
    problem();
    by("said").textContent = "";
    if (!files.length) { problem("nothing was dropped that is a file"); return; }
    ready(false);
    const title = files.length === 1 ? files[0].name : `${files.length} files`;
    by("scan").textContent = `Uploading ${title} …`;
    try {
      const [sent, called] = files.length === 1 && /\.(nii|gz|nrrd|mha|zip)$/i.test(files[0].name)
        ? [files[0], files[0].name] : [await zip(files), "scan.zip"];
      const brought = await json(`scans?filename=${encodeURIComponent(called)}`, { method: "POST", body: sent });
      if (state.scan) call(`scans/${state.scan}`, { method: "DELETE" }).catch(() => {});
      state.scan = brought.scan;
      by("scan").textContent = `${title}: ${brought.shape.join(" × ")} voxels of ` +
        `${brought.spacing_mm.map((s) => s.toFixed(2)).join(" × ")} mm`;
      by("dicom-line").hidden = !brought.dicom;
      for (const id of ["structures", "files"]) by(id).replaceChildren();
      by("measured").hidden = true;
      const image = await (await call(`scans/${state.scan}/image`)).arrayBuffer();
      const name = /\.(nrrd|mha|nii)$/i.exec(called) ? `scan${/\.(nrrd|mha|nii)$/i.exec(called)[0].toLowerCase()}` : "scan.nii.gz";
      nv.volumes = [];
      await nv.loadFromArrayBuffer(image, name);
      nv.setSliceType(nv.sliceTypeMultiplanar);
      ready(true);
      by("words").focus();
    } catch (error) {
      by("scan").textContent = "";
      problem(error);
      ready(state.scan !== null);
    }
  }

  async function ask(prompts) {
    problem();
    ready(false);
    by("said").textContent = "";
    state.asking = true;
    by("cancel").hidden = false;
    by("cancel").focus(); // what has the focus is disabled now, and would hear no key
    by("progress").hidden = false;
    try {
      let job = await json(`scans/${state.scan}/jobs`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({
          prompts, combine: true, measures: by("measures").checked, dicom_sr: !by("dicom-line").hidden && by("dicom").checked,
        }),
      });
      state.job = job.job;
      if (state.ending) cancel(); // asked for before the server had told the job's name
      while (job.state === "waiting" || job.state === "running") {
        by("progress").value = job.progress;
        await new Promise((done) => setTimeout(done, 150));
        job = await json(`jobs/${job.job}`);
      }
      if (job.state === "failed") throw new Error(job.error);
      if (job.state === "cancelled") by("said").textContent = "Cancelled.";
      if (job.state === "done") {
        await show(job);
        by("said").textContent = `Done in ${job.seconds.toFixed(1)} s.`;
      }
    } catch (error) {
      problem(error);
    } finally {
      state.job = null;
      state.asking = state.ending = false;
      by("progress").hidden = true;
      by("progress").value = 0;
      ready(true);
      if (document.activeElement === by("cancel")) by("words").focus();
      by("cancel").hidden = true;
    }
  }

  const hue = (i) => (i * 137.508 + 20) % 360;
  function colour(i) {
    const f = (n, h = hue(i), s = 0.75, l = 0.58) => {
      const k = (n + h / 30) % 12;
      return Math.round(255 * (l - s * Math.min(l, 1 - l) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
    };
    return [f(0), f(8), f(4)];
  }

  function repaint() {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    for (const s of state.shown) {
      const [r, g, b] = s.colour;
      map.R.push(r); map.G.push(g); map.B.push(b);
      map.A.push(s.on ? 255 : 0); map.I.push(s.label); map.labels.push(s.name);
    }
    nv.volumes[1].setColormapLabel(map);
    nv.updateGLVolume();
  }

  async function show(job) {
    const name = job.files.find((f) => /\.(nii\.gz|nii|nrrd|mha)$/.test(f));
    const data = await (await call(`jobs/${job.job}/files/${encodeURIComponent(name)}`)).arrayBuffer();
    while (nv.volumes.length > 1) nv.removeVolume(nv.volumes[1]);
    await nv.loadFromArrayBuffer(data, name);
    state.shown = job.prompts.filter((p) => p.label != null)
      .map((p, i) => ({ name: p.prompt, label: p.label, ml: p.volume_ml, colour: colour(i), on: true }));
    repaint();
    nv.setOpacity(1, by("opacity").value / 100);
    const rows = state.shown.map((s, i) => {
      const row = document.createElement("li");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, id: `s${i}` });
      box.addEventListener("change", () => { s.on = box.checked; repaint(); });
      const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
      swatch.style.background = `rgb(${s.colour})`;
      const label = Object.assign(document.createElement("label"), { className: "name", htmlFor: box.id });
      label.textContent = s.name;
      const size = Object.assign(document.createElement("span"), { className: "faint" });
      size.textContent = `${s.ml < 10 ? s.ml.toFixed(2) : Math.round(s.ml)} ml`;
      row.append(box, swatch, label, size);
      return row;
    });
    for (const p of job.prompts.filter((q) => q.label == null)) {
      const row = document.createElement("li");
      row.className = "faint";
      row.textContent = `${p.prompt}: ${p.voxels == null ? p.note || p.status : "not found"}`;
      rows.push(row);
    }
    if (job.not_looked_for.length) {
      const row = document.createElement("li");
      row.className = "faint";
      row.textContent = "Not looked for, because the model knows them only from much smaller scans: " +
        `${job.not_looked_for.join(", ")}. Type a name to look for it.`;
      rows.push(row);
    }
    by("structures").replaceChildren(...rows);
    showMeasures(job.prompts.filter((p) => p.measures));
    showFiles(job, name, data);
  }

  const few = (x) => x.toLocaleString("en", { maximumSignificantDigits: Math.abs(x) < 1000 ? 3 : 6 });

  function showMeasures(found) {
    by("measured").hidden = !found.length;
    if (!found.length) return;
    const hu = found.some((p) => p.measures.air != null);
    const columns = [
      ["ml", (m) => few(m.volume_ml)], ["cm²", (m) => few(m.surface_cm2)],
      ["axes, mm", (m) => [m.major_axis_mm, m.minor_axis_mm, m.least_axis_mm].map(few).join(" × ")],
      [hu ? "HU" : "intensity", (m) => `${few(m.mean)} ± ${few(m.deviation)}`],
    ];
    if (hu) for (const tissue of ["air", "fat", "soft", "dense"]) columns.push([tissue, (m) => `${Math.round(100 * m[tissue])} %`]);
    const table = document.createElement("table");
    table.createCaption().textContent = "Measures";
    const cell = (row, kind, text, scope) => {
      const made = document.createElement(kind);
      made.textContent = text;
      if (scope) made.scope = scope;
      row.append(made);
    };
    const head = table.createTHead().insertRow();
    for (const title of ["", ...columns.map((c) => c[0])]) cell(head, "th", title, "col");
    const body = table.createTBody();
    for (const p of found) {
      const row = body.insertRow();
      cell(row, "th", p.prompt, "row");
      for (const [, text] of columns) cell(row, "td", text(p.measures));
    }
    by("measured").replaceChildren(table);
  }

  function showFiles(job, map, data) {
    const kinds = [
      [/\.(nii\.gz|nii|nrrd|mha)$/, "Download label map"], [/measures\.csv$/, "Download measures (CSV)"],
      [/segmentation\w*\.dcm$/, "Download segmentation (DICOM)"], [/report\.dcm$/, "Download report (DICOM SR)"],
    ];
    const buttons = [];
    for (const [kind, title] of kinds) {
      for (const file of job.files.filter((f) => kind.test(f))) {
        const button = Object.assign(document.createElement("button"), { type: "button", textContent: title });
        button.addEventListener("click", async () => {
          try {
            save(file, file === map ? data : await (await call(`jobs/${job.job}/files/${encodeURIComponent(file)}`)).blob());
          } catch (error) { problem(error); }
        });
        buttons.push(button);
      }
    }
    by("files").replaceChildren(...buttons);
  }

  function save(name, content) {
    const a = document.createElement("a");
    a.href = URL.createObjectURL(new Blob([content]));
    a.download = name;
    a.click();
    setTimeout(() => URL.revokeObjectURL(a.href), 1000);
  }

  let typing;
  async function suggest() {
    const words = by("words").value.split(",");
    const last = words[words.length - 1].trim();
    if (!last) { by("meaning").textContent = ""; return; }
    try {
      const found = await json(`prompts?q=${encodeURIComponent(last)}`);
      const before = words.slice(0, -1).map((w) => w.trim()).join(", ");
      by("suggestions").replaceChildren(...found.suggestions.map((name) => {
        const option = document.createElement("option");
        option.value = before ? `${before}, ${name}` : name;
        return option;
      }));
      by("meaning").textContent = found.meaning.map((m) =>
        m.class ? (m.class === m.prompt ? `${m.class}: known` : `${m.prompt}: ${m.class}`)
          : `${m.prompt}: ${m.note || "not known to this model"}`).join("; ");
    } catch (error) { problem(error); }
  }

  by("words").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(suggest, 200); });
  by("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const prompts = by("words").value.split(",").map((w) => w.trim()).filter(Boolean);
    if (prompts.length) ask(prompts);
  });
  by("everything").addEventListener("click", () => ask(null));
  function cancel() {
    if (!state.asking) return;
    state.ending = true;
    if (state.job) call(`jobs/${state.job}`, { method: "DELETE" }).catch(problem);
  }
  by("cancel").addEventListener("click", cancel);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") cancel(); });
  for (const id of ["file", "folder"]) {
    by(id).addEventListener("change", () => {
      const files = [...by(id).files];
      if (files.length) bring(files.sort((a, b) => (a.webkitRelativePath < b.webkitRelativePath ? -1 : 1)));
      by(id).value = ""; // the same one may be chosen again
    });
  }
  by("choose-folder").addEventListener("click", () => by("folder").click());

  async function within(entry) {
    if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
    const reader = entry.createReader(), found = [];
    for (;;) { // a reader gives a hundred at a time
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) break;
      found.push(...some);
    }
    found.sort((a, b) => (a.name < b.name ? -1 : 1));
    const files = [];
    for (const inner of found) files.push(...await within(inner));
    return files;
  }
  const drop = by("drop");
  drop.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); by("file").click(); }
  });
  for (const name of ["dragover", "dragenter"]) {
    document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((i) => i.webkitGetAsEntry && i.webkitGetAsEntry()).filter(Boolean);
    const plain = [...event.dataTransfer.files];
    (entries.length ? Promise.all(entries.map(within)).then((all) => all.flat()) : Promise.resolve(plain))
      .then(bring).catch(problem);
  });
  by("opacity").addEventListener("input", () => {
    if (nv.volumes.length > 1) nv.setOpacity(1, by("opacity").value / 100);
  });
  by("token").addEventListener("change", hello);

  async function hello() {
    try {
      const model = await json("model");
      by("model").textContent = `${model.model}: ${model.classes.length} classes, ${model.modalities.join(", ")}`;
      problem();
    } catch (error) { problem(error); }
  }

  nv.attachTo("canvas").then(hello).then(() => { document.documentElement.dataset.ready = "true"; });
})();
