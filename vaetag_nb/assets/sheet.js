// HTML whose buttons are heard. Python gives `html`; a press of the button with data-at="7" sends {at: 7}.
function render({ model, el }) {
  const box = document.createElement('div');
  box.className = 'vt-sheet-of';
  box.setAttribute('role', 'group');
  el.replaceChildren(box);
  let here = 0;      // the one tab stop

  const buttons = () => [...box.querySelectorAll('button')];
  const twins = (at) => buttons().filter((b) => b.dataset.at === at);      // all that tell the same number
  const press = (b) => model.send({ at: Number(b.dataset.at) });
  function stop(to) {
    const all = buttons();
    here = Math.max(0, Math.min(to, all.length - 1));
    all.forEach((b, i) => { b.tabIndex = i === here ? 0 : -1; });
    return all[here];
  }

  function draw() {      // the focus stays with what it was on
    const held = box.querySelector('button:focus'), at = held?.dataset.at, k = held ? twins(at).indexOf(held) : 0;
    box.setAttribute('aria-label', model.get('label'));
    box.innerHTML = model.get('html');      // escaped in Python
    const same = held && (twins(at)[k] ?? twins(at)[0]);
    const there = stop(same ? buttons().indexOf(same) : here);
    if (held) there?.focus({ preventScroll: true });
  }

  function beside(from, way) {      // the nearest button above (-1) or below (1)
    const middle = (b) => { const r = b.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; };
    const [x, y] = middle(from), far = (b) => { const [u, v] = middle(b); return 10 * Math.abs(v - y) + Math.abs(u - x); };
    return buttons().filter((b) => (middle(b)[1] - y) * way > 4).sort((a, b) => far(a) - far(b))[0];
  }

  box.addEventListener('focusin', (e) => { const i = buttons().indexOf(e.target); if (i >= 0) stop(i); });
  box.addEventListener('click', (e) => { const b = e.target.closest('button'); if (b) { b.focus(); press(b); } });
  box.addEventListener('keydown', (e) => {
    const b = e.target.closest('button');
    if (!b || e.altKey || e.ctrlKey || e.metaKey) return;
    const all = buttons(), i = all.indexOf(b), to = { ArrowLeft: all[i - 1], ArrowRight: all[i + 1], Home: all[0], End: all.at(-1) };
    if (e.key in to) to[e.key]?.focus();
    else if (e.key === 'ArrowUp' || e.key === 'ArrowDown') beside(b, e.key === 'ArrowUp' ? -1 : 1)?.focus();
    else if (e.key === 'Enter' || e.key === ' ') press(b);
    else if (e.key.length > 1) return;
    e.preventDefault();
    e.stopPropagation();      // a letter is not to delete the notebook's cell
  });

  model.on('change:html change:label', draw);
  draw();
}

export default { render };
