// Thumbnails as one listbox. Python gives `items`; the hand changes `at` (the opened one) and `selected`.
function render({ model, el }) {
  const box = document.createElement('div');
  box.className = 'vt-wall';
  box.setAttribute('role', 'listbox');
  el.replaceChildren(box);
  let focus = 0, anchor = 0;      // where the one tab stop is, where a range begins

  const get = (key) => model.get(key), cells = () => [...box.children];
  const send = (key, value) => { model.set(key, value); model.save_changes(); };
  const open = (i) => send('at', get('at') === i ? null : i);
  const select = (some) => send('selected', [...new Set(some)].sort((a, b) => a - b));
  const toggle = (i) => select(get('selected').includes(i) ? get('selected').filter((j) => j !== i) : [...get('selected'), i]);
  const range = (a, b) => Array.from({ length: Math.abs(b - a) + 1 }, (_, i) => Math.min(a, b) + i);
  const choose = (i, shift) => { if (shift) select([...get('selected'), ...range(anchor, i)]); else { toggle(i); anchor = i; } };

  function cell() {
    const fig = document.createElement('figure'), img = document.createElement('img'), text = document.createElement('div');
    fig.setAttribute('role', 'option');
    img.draggable = false;
    fig.append(img, document.createElement('span'), text);
    return fig;
  }

  function fill(fig, { src = '', alert = '', title = '', caption = '', colour = '', dashed = false }) {
    const [img, why, text] = fig.children;
    if (img.getAttribute('src') !== src) src ? img.setAttribute('src', src) : img.removeAttribute('src');
    img.hidden = !src;
    img.alt = fig.title = title;
    why.textContent = alert;
    if (text.dataset.html !== caption) text.innerHTML = text.dataset.html = caption;      // escaped in Python
    fig.style.border = colour ? `3px ${dashed ? 'dashed' : 'solid'} ${colour}` : '';
  }

  function draw() {      // elements stay, and only what differs is touched: nothing flickers, and the focus stays
    const items = get('items'), held = box.matches(':focus-within');
    box.style.setProperty('--side', `${get('side')}px`);
    while (box.children.length > items.length) box.lastChild.remove();
    while (box.children.length < items.length) box.append(cell());
    items.forEach((item, i) => fill(box.children[i], item));
    focus = Math.max(0, Math.min(focus, items.length - 1));
    anchor = Math.min(anchor, focus);
    mark();
    if (held) box.children[focus]?.focus();
  }

  function mark() {
    const at = get('at'), chosen = new Set(get('multiple') ? get('selected') : [at]);
    box.setAttribute('aria-label', get('label'));
    box.setAttribute('aria-multiselectable', get('multiple'));
    cells().forEach((fig, i) => {
      fig.tabIndex = i === focus ? 0 : -1;
      fig.setAttribute('aria-selected', chosen.has(i));
      fig.classList.toggle('vt-open', i === at);
    });
  }

  const which = (event) => cells().indexOf(event.target.closest('figure'));
  box.addEventListener('focusin', (e) => { focus = Math.max(0, which(e)); mark(); });
  box.addEventListener('click', (e) => {
    const i = which(e);
    if (i < 0) return;
    box.children[i].focus();
    if (get('multiple')) choose(i, e.shiftKey); else if (e.detail < 2) open(i);
  });
  box.addEventListener('dblclick', (e) => { if (get('multiple') && which(e) >= 0) open(which(e)); });

  box.addEventListener('keydown', (e) => {
    const n = box.children.length, many = get('multiple'), columns = cells().filter((c) => c.offsetTop === box.children[0].offsetTop).length;
    const to = { ArrowLeft: focus - 1, ArrowRight: focus + 1, ArrowUp: focus - columns, ArrowDown: focus + columns, Home: 0, End: n - 1 }[e.key];
    if (e.altKey || ((e.ctrlKey || e.metaKey) && e.key !== 'a')) return;
    if (to !== undefined) { if (to >= 0 && to < n) { box.children[to].focus(); if (many && e.shiftKey) choose(to, true); else anchor = to; } }
    else if (e.key === ' ' && many) choose(focus, e.shiftKey);
    else if (e.key === 'Enter' || e.key === ' ') open(focus);
    else if (e.key === 'a' && (e.ctrlKey || e.metaKey)) { if (many) select(range(0, n - 1)); }
    else if (e.key === 'Escape') { model.set('at', null); model.set('selected', []); model.save_changes(); }
    else if (e.key.length > 1) return;
    e.preventDefault();
    e.stopPropagation();      // these keys are ours; a letter is not to delete the notebook's cell
  });

  model.on('change:items change:side', draw);
  model.on('change:at change:selected change:multiple change:label', mark);
  draw();
}

export default { render };
