"use strict";
// A folder as one upload: files without compression in a ZIP archive. Names stay in the browser, since names of patients may
// be in them; the order is theirs.
const zip = (() => {
  const table = Uint32Array.from({ length: 256 }, (_, n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n >>> 0;
  });

  function crc32(bytes) {
    let crc = 0xffffffff;
    for (let i = 0; i < bytes.length; i++) crc = table[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
    return (crc ^ 0xffffffff) >>> 0;
  }

  // What an entry's two headers share: version, flags, method, time, date, checksum, sizes, length of the name.
  function described(view, at, crc, size, name) {
    view.setUint16(at, 20, true);
    view.setUint16(at + 8, 0x21, true); // 1 January 1980
    view.setUint32(at + 10, crc, true);
    view.setUint32(at + 14, size, true);
    view.setUint32(at + 18, size, true);
    view.setUint16(at + 22, name.length, true);
  }

  return async function zip(files) {
    const parts = [], central = [];
    let offset = 0, directory = 0;
    for (const [number, file] of files.entries()) {
      const name = new TextEncoder().encode(`${String(number).padStart(6, "0")}.dcm`);
      const crc = crc32(new Uint8Array(await file.arrayBuffer()));
      const local = new DataView(new ArrayBuffer(30)), entry = new DataView(new ArrayBuffer(46));
      local.setUint32(0, 0x04034b50, true);
      described(local, 4, crc, file.size, name);
      entry.setUint32(0, 0x02014b50, true);
      entry.setUint16(4, 20, true);
      described(entry, 6, crc, file.size, name);
      entry.setUint32(42, offset, true);
      parts.push(local, name, file); // the file itself, not its bytes: they are not all kept in memory
      central.push(entry, name);
      offset += 30 + name.length + file.size;
      directory += 46 + name.length;
      if (offset + directory > 0xfffffff0 || number > 0xfff0) throw new Error("more than 4 GB or 65,520 files in one folder");
    }
    const end = new DataView(new ArrayBuffer(22));
    end.setUint32(0, 0x06054b50, true);
    end.setUint16(8, files.length, true);
    end.setUint16(10, files.length, true);
    end.setUint32(12, directory, true);
    end.setUint32(16, offset, true);
    return new Blob([...parts, ...central, end]);
  };
})();
