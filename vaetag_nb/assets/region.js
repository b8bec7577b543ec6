// A picture with a rectangle on it. Python gives `src` and `box` (top, bottom, left, right: shares); a drag makes another box, and is told when it ends.
function render({ model, el }) {
  const frame = document.createElement('div'), img = document.createElement('img'), mark = document.createElement('div');
  frame.className = 'vt-region';
  img.draggable = false;
  frame.append(img, mark);
  el.replaceChildren(frame);
  let from = null, box;

  const place = ([top, bottom, left, right]) => { mark.style.inset = [top, 1 - right, 1 - bottom, left].map((x) => `${100*x}%`).join(' '); };
  const share = (x, start, length) => Math.min(1, Math.max(0, (x - start)/length));
  const point = (e) => { const r = img.getBoundingClientRect(); return [share(e.clientY, r.top, r.height), share(e.clientX, r.left, r.width)]; };
  const drag = (e) => { const to = point(e), side = (i) => [Math.min(from[i], to[i]), Math.max(from[i], to[i])]; place(box = [...side(0), ...side(1)]); };
  const draw = () => { img.src = model.get('src'); img.alt = model.get('label'); place(model.get('box')); };

  frame.addEventListener('pointerdown', (e) => { if (e.button === 0) { frame.setPointerCapture(e.pointerId); from = point(e); drag(e); } });
  frame.addEventListener('pointermove', (e) => { if (from) drag(e); });
  frame.addEventListener('pointerup', (e) => { if (from) { drag(e); from = null; model.set('box', box); model.save_changes(); } });
  frame.addEventListener('pointercancel', () => { from = null; draw(); });
  model.on('change:src change:box change:label', draw);
  draw();
}

export default { render };
