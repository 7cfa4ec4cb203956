'use strict';

// Charts: the values under the pointer, or under the arrow keys, take the place of the legend's.
for (const figure of document.querySelectorAll('.chart')) {
  const plot = figure.querySelector('.plot'), cursor = plot.querySelector('.cursor'), at = figure.querySelector('.at');
  const outputs = [...figure.querySelectorAll('.legend output')], notes = outputs.map(output => output.textContent);
  let values, stops, stop = -1;

  const nearest = (xs, x) => xs.reduce((best, one, i) => Math.abs(one - x) < Math.abs(xs[best] - x) ? i : best, 0);
  const load = () => {
    values ??= JSON.parse(figure.dataset.values);
    stops ??= [...new Set(values.curves.flatMap(curve => curve.x))].sort((a, b) => a - b);
  };
  const written = y => y === null ? '–' : values.decimals === null ? String(+y.toPrecision(4)) : y.toFixed(values.decimals);
  const show = index => {
    stop = Math.max(0, Math.min(index, stops.length - 1));
    const axis = values.x, x = stops[stop];
    const place = axis.start + (x - axis.low) / (axis.high - axis.low) * (axis.end - axis.start);
    cursor.setAttribute('x1', place);
    cursor.setAttribute('x2', place);
    cursor.removeAttribute('hidden');
    at.textContent = `${axis.label} ${x.toLocaleString('en')}`;
    values.curves.forEach((curve, i) => { outputs[i].textContent = written(curve.y[nearest(curve.x, x)]); });
  };
  const rest = () => {
    stop = -1;
    cursor.setAttribute('hidden', '');
    at.textContent = '';
    outputs.forEach((output, i) => { output.textContent = notes[i]; });
  };
  const point = event => {
    load();
    const box = plot.getBoundingClientRect(), axis = values.x;
    const place = (event.clientX - box.left) / box.width * axis.width;
    show(nearest(stops, axis.low + (place - axis.start) / (axis.end - axis.start) * (axis.high - axis.low)));
  };
  plot.addEventListener('pointermove', point);
  plot.addEventListener('pointerdown', point);
  plot.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') rest(); });  // a lifted finger leaves too
  plot.addEventListener('blur', rest);
  plot.addEventListener('keydown', event => {
    const by = {ArrowRight: 1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity}[event.key];
    if (event.key === 'Escape') rest();
    if (by === undefined) return;
    event.preventDefault();
    load();
    show(stop < 0 && by < 0 ? stops.length - 1 : stop + by);
  });
}

// One chart of several.
for (const select of document.querySelectorAll('.choose select')) {
  const charts = select.closest('.chosen').querySelectorAll('[data-choice]');
  const choose = () => { for (const chart of charts) chart.hidden = chart.dataset.choice !== select.value; };
  select.addEventListener('change', choose);
  choose();  // a reloaded page keeps the selection
}

// Tables: a click on a head sorts by its column, another one the other way round.
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, column) => {
    const data = row.cells[column].querySelector('data');
    return data ? Number(data.value) : row.cells[column].textContent.trim();
  };
  const compare = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), 'en');
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const numbers = [...body.rows].some(row => typeof key(row, column) === 'number');
    const before = head.getAttribute('aria-sort');
    const descending = before ? before === 'ascending' : numbers;  // of numbers the largest first, of names the first
    const lacks = row => ['', '–', 'NaN'].includes(String(key(row, column)));
    const rows = [...body.rows].sort((a, b) => lacks(a) - lacks(b) || (descending ? -1 : 1) * compare(key(a, column), key(b, column)));
    for (const other of heads) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
    body.append(...rows);
  }));
}

// Gallery: which boxes are shown, and from which score on.
for (const gallery of document.querySelectorAll('.gallery')) {
  const form = gallery.querySelector('.toggles'), slider = form.elements.threshold;
  const update = () => {
    for (const box of form.querySelectorAll('[type=checkbox]')) gallery.classList.toggle(`no-${box.name}`, !box.checked);
    slider.parentElement.querySelector('output').textContent = Number(slider.value).toFixed(2);
    for (const box of gallery.querySelectorAll('[data-score]')) {
      box.toggleAttribute('hidden', Number(box.dataset.score) <= Number(slider.value));
    }
    for (const count of gallery.querySelectorAll('.count')) {
      const boxes = count.closest('.picture').querySelectorAll(`rect.${count.dataset.kind}:not([hidden])`);
      count.textContent = boxes.length;
    }
  };
  form.addEventListener('input', update);
  form.addEventListener('submit', event => event.preventDefault());
  update();
  gallery.addEventListener('click', event => {
    const button = event.target.closest('.enlarge');
    if (!button) return;
    const large = button.closest('.picture').classList.toggle('large');
    button.setAttribute('aria-pressed', large);
    button.setAttribute('aria-label', button.getAttribute('aria-label').replace(/^\w+/, large ? 'Shrink' : 'Enlarge'));
  });
}

document.documentElement.dataset.script = 'ran';
