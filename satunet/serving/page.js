"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const state = {
    scan: null, // the server's name of it
    title: "", // what is said of it
    job: null, asking: false, ending: false,
    shown: [], // structures of the label map
    numbered: null, // the one of them whose single instances are shown
    most: Infinity, // bytes of an upload
    inNumbers: new Set(), // classes of which a scan may show several
  };
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
    if (!answer.ok) throw refusal(answer.status, await answer.text(), answer.statusText);
    return answer;
  }

  function refusal(status, text, otherwise) {
    if (status === 401) by("token-line").hidden = false;
    try {
      const detail = JSON.parse(text).detail;
      return new Error(typeof detail === "string" ? detail : detail.map((d) => d.msg).join("; "));
    } catch { // no JSON
      return new Error(otherwise || `the server answered ${status}`);
    }
  }

  // fetch cannot say how much is sent.
  function upload(path, body, sent) {
    return new Promise((done, failed) => {
      const request = new XMLHttpRequest();
      request.open("POST", path);
      for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
      request.upload.onprogress = (event) => { if (event.lengthComputable) sent(event.loaded / event.total); };
      request.onload = () => {
        if (request.status < 300) done(JSON.parse(request.responseText));
        else failed(refusal(request.status, request.responseText, request.statusText));
      };
      request.onerror = () => failed(new Error("the connection to the server broke off during the upload"));
      request.send(body);
    });
  }

  const json = async (path, options) => (await call(path, options)).json();
  const problem = (error) => { by("problem").textContent = error ? error.message || String(error) : ""; };

  function ready(on) {
    for (const id of ["words", "go", "everything"]) by(id).disabled = !on;
  }

  const megabytes = (bytes) => (bytes / 1e6).toLocaleString("en", { maximumSignificantDigits: bytes < 1e9 ? 3 : 6 });

  function tooLarge(bytes, title) {
    if (bytes <= state.most) return false;
    problem(`${title}: ${megabytes(bytes)} MB, but this server takes at most ${megabytes(state.most)} MB; nothing was uploaded`);
    return true;
  }

  // One file as it is; several, as of a folder, as one archive.
  async function bring(files) {
    files = files.filter((f) => !f.name.startsWith("."));
    problem();
    by("said").textContent = "";
    if (!files.length) { problem("nothing was dropped that is a file"); return; }
    const title = files.length === 1 ? files[0].name : `${files.length} files`;
    if (tooLarge(files.reduce((sum, f) => sum + f.size, 0), title)) return; // before a byte is read, packed or sent
    ready(false);
    by("scan").textContent = `Uploading ${title} …`;
    by("percent").textContent = "";
    try {
      const [sent, called] = files.length === 1 && /\.(nii|gz|nrrd|mha|zip)$/i.test(files[0].name)
        ? [files[0], files[0].name] : [await zip(files), "scan.zip"];
      if (tooLarge(sent.size, title)) { asBefore(); return; } // an archive is a little larger than what is in it
      by("progress").hidden = false;
      const brought = await upload(`scans?filename=${encodeURIComponent(called)}`, sent, (share) => {
        by("progress").value = share;
        by("percent").textContent = share < 1 ? ` ${Math.floor(100 * share)} %` : " sent; the server reads it";
      });
      by("progress").hidden = !state.asking;
      by("progress").value = 0;
      by("percent").textContent = "";
      if (state.scan) call(`scans/${state.scan}`, { method: "DELETE" }).catch(() => {});
      state.scan = brought.scan;
      by("scan").textContent = state.title = `${title}: ${brought.shape.join(" × ")} voxels of ` +
        `${brought.spacing_mm.map((s) => s.toFixed(2)).join(" × ")} mm`;
      by("dicom-line").hidden = !brought.dicom;
      for (const id of ["structures", "files"]) by(id).replaceChildren();
      by("measured").hidden = true;
      state.shown = [];
      state.numbered = null;
      const image = await (await call(`scans/${state.scan}/image`)).arrayBuffer();
      const name = /\.(nrrd|mha|nii)$/i.exec(called) ? `scan${/\.(nrrd|mha|nii)$/i.exec(called)[0].toLowerCase()}` : "scan.nii.gz";
      nv.volumes = [];
      await nv.loadFromArrayBuffer(image, name);
      nv.setSliceType(nv.sliceTypeMultiplanar);
      ready(true);
      by("words").focus();
    } catch (error) {
      asBefore();
      problem(error);
    } finally {
      by("progress").hidden = !state.asking;
      by("percent").textContent = "";
    }
  }

  // The scan before, if there is one, is still there.
  function asBefore() {
    by("scan").textContent = state.title;
    ready(state.scan !== null);
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
      const asked = { measures: by("measures").checked, dicom_sr: !by("dicom-line").hidden && by("dicom").checked };
      const job = await run({ prompts, combine: true, ...asked });
      if (job.state === "done") await show(job);
      const told = job.state === "done" && by("number").checked && !by("number-line").hidden ? await number(job) : "";
      by("said").textContent = job.state === "cancelled" ? "Cancelled." : `Done in ${job.seconds.toFixed(1)} s.${told}`;
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

  // A job, from the question to its end.
  async function run(asked) {
    let job = await json(`scans/${state.scan}/jobs`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked),
    });
    state.job = job.job;
    if (state.ending) cancel(); // asked for before the server had told the job's name
    while (job.state === "waiting" || job.state === "running") {
      by("progress").value = job.progress;
      job = await json(`jobs/${job.job}?wait=0.5`); // answered as soon as it ends
    }
    state.job = null;
    if (job.state === "failed") throw new Error(job.error);
    return job;
  }

  // Single lesions, ribs, vertebrae: a question of its own, because a label map has one number per structure. It costs
  // little: the scan is encoded by now.
  async function number(before) {
    const several = state.shown.filter((s) => state.inNumbers.has(s.kind));
    if (!several.length) return " Nothing was found of which there may be several.";
    const job = await run({ prompts: several.map((s) => s.name), instances: true, modality: before.modality });
    for (const p of job.prompts.filter((q) => q.instances && q.instances.length)) {
      const file = p.file.replace(/(\.nii\.gz|\.nii|\.nrrd|\.mha)$/, "_instances$1");
      const s = several.find((known) => known.name === p.prompt);
      if (s) list(s, p.instances, job, file);
    }
    return job.state === "cancelled" ? " Numbering was cancelled." : ` Numbered in ${job.seconds.toFixed(1)} s.`;
  }

  function list(s, instances, job, file) {
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    summary.textContent = instances.length === 1 ? "1, numbered" : `${instances.length}, numbered`;
    const places = document.createElement("ol");
    for (const one of instances) {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
      swatch.style.background = `rgb(${colour(one.number)})`;
      button.append(swatch, `${one.number}: ${millilitres(one.volume_ml)}`);
      button.setAttribute("aria-label", `Go to ${s.name} ${one.number}, ${millilitres(one.volume_ml)}`);
      button.addEventListener("click", () => {
        nv.scene.crosshairPos = nv.mm2frac(one.centre_mm);
        nv.createOnLocationChange();
        nv.drawScene();
      });
      const place = document.createElement("li");
      place.append(button);
      places.append(place);
    }
    details.append(summary, places);
    details.addEventListener("toggle", () => paintInstances(s, details, instances, job, file).catch(problem));
    s.row.append(details);
    addFile(job, file, `Download numbered ${s.name}`);
  }

  // The numbers of one structure at a time, each in its colour, in place of its mask.
  async function paintInstances(s, details, instances, job, file) {
    if (!details.open) {
      if (state.numbered === s) showNumbered(null);
      return;
    }
    for (const other of document.querySelectorAll("#structures details[open]")) other.open = other === details;
    const data = await result(job, file);
    if (!details.open) return; // closed meanwhile
    showNumbered(null);
    await nv.loadFromArrayBuffer(data, file);
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    for (const { number: i } of instances) {
      const [r, g, b] = colour(i);
      map.R.push(r); map.G.push(g); map.B.push(b);
      map.A.push(255); map.I.push(i); map.labels.push(`${s.name} ${i}`);
    }
    nv.volumes[2].setColormapLabel(map);
    showNumbered(s);
  }

  function showNumbered(s) {
    state.numbered = s;
    if (!s) while (nv.volumes.length > 2) nv.removeVolume(nv.volumes[2]);
    repaint();
  }

  const result = async (job, file) => (await call(`jobs/${job.job}/files/${encodeURIComponent(file)}`)).arrayBuffer();
  const millilitres = (ml) => `${ml < 10 ? ml.toFixed(2) : Math.round(ml)} ml`;

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
      map.A.push(s.on && s !== state.numbered ? 255 : 0); map.I.push(s.label); map.labels.push(s.name);
    }
    nv.volumes[1].setColormapLabel(map);
    setOpacities();
    nv.updateGLVolume();
  }

  function setOpacities() {
    const opacity = by("opacity").value / 100;
    if (nv.volumes.length > 1) nv.setOpacity(1, opacity);
    if (nv.volumes.length > 2) nv.setOpacity(2, state.numbered && state.numbered.on ? opacity : 0);
  }

  async function show(job) {
    const name = job.files.find((f) => /\.(nii\.gz|nii|nrrd|mha)$/.test(f));
    const data = await result(job, name);
    while (nv.volumes.length > 1) nv.removeVolume(nv.volumes[1]);
    state.numbered = null;
    await nv.loadFromArrayBuffer(data, name);
    state.shown = job.prompts.filter((p) => p.label != null)
      .map((p, i) => ({ name: p.prompt, kind: p.class, label: p.label, ml: p.volume_ml, colour: colour(i), on: true }));
    repaint();
    const rows = state.shown.map((s, i) => {
      const row = s.row = document.createElement("li");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, id: `s${i}` });
      box.addEventListener("change", () => { s.on = box.checked; repaint(); });
      const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
      swatch.style.background = `rgb(${s.colour})`;
      const label = Object.assign(document.createElement("label"), { className: "name", htmlFor: box.id });
      label.textContent = s.name;
      const size = Object.assign(document.createElement("span"), { className: "faint" });
      size.textContent = millilitres(s.ml);
      row.append(box, swatch, label, size);
      return row;
    });
    for (const p of job.prompts.filter((q) => q.label == null)) {
      const row = document.createElement("li");
      row.className = "faint";
      const why = p.left_out ? `left out: ${p.left_out}` : p.covered_ml ? "covered by others" : "not found";
      row.textContent = `${p.prompt}: ${p.voxels == null ? p.note || p.status : why}`;
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
    by("files").replaceChildren();
    for (const [kind, title] of kinds) {
      for (const file of job.files.filter((f) => kind.test(f))) addFile(job, file, title, file === map ? data : null);
    }
  }

  function addFile(job, file, title, data) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: title });
    button.addEventListener("click", async () => {
      try {
        save(file, data || await result(job, file));
      } catch (error) { problem(error); }
    });
    by("files").append(button);
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
  by("opacity").addEventListener("input", setOpacities);
  by("token").addEventListener("change", hello);

  async function hello() {
    try {
      const model = await json("model");
      state.most = 1e6 * model.most_upload_mb;
      state.inNumbers = new Set(model.classes.filter((c) => c.in_numbers).map((c) => c.name));
      by("number-line").hidden = !state.inNumbers.size;
      by("model").textContent = `${model.model}: ${model.classes.length} classes, ${model.modalities.join(", ")}`;
      problem();
    } catch (error) { problem(error); }
  }

  nv.attachTo("canvas").then(hello).then(() => { document.documentElement.dataset.ready = "true"; });
})();
