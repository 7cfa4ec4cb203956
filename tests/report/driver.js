// What a reader does to the report in the frame with the id WIDTH; what is seen then goes to results[WIDTH].
const report = document.getElementById(WIDTH).contentDocument, root = report.documentElement, view = report.defaultView;
const $ = selector => report.querySelector(selector), all = selector => [...report.querySelectorAll(selector)];
const visible = one => one.getClientRects().length > 0;
const seen = selector => all(selector).filter(visible).length;
const boxes = () => [seen('rect.truth'), seen('rect.detections'), seen('rect.rejected')];
const send = (one, kind, Kind = view.Event, more = {}) => one.dispatchEvent(new Kind(kind, {bubbles: true, ...more}));
const result = results[WIDTH] = {script: root.dataset.script, width: root.scrollWidth, client: root.clientWidth};

result.boxes = boxes();
$('[name=rejected]').click();
$('[name=truth]').click();
result.toggled = boxes();
$('[name=threshold]').value = 0.5;
send($('[name=threshold]'), 'input');
result.over_half = boxes();
result.counts = $('.picture .facts').textContent;
result.tags = seen('.tags text');
$('[name=labels]').click();
result.no_tags = seen('.tags text');
$('.enlarge').click();
result.enlarged = [$('.enlarge').ariaPressed, seen('.picture.large')];

const heads = all('#metrics .sortable thead button'), rows = () => all('#metrics .sortable tbody tr');
const by_value = () => rows().map(row => row.cells[1].querySelector('data').value);
heads[1].click();
result.falling = by_value();
heads[1].click();
result.rising = by_value();
heads[0].click();
result.names = rows().map(row => row.cells[0].textContent);
result.sorted = heads.map(head => head.parentElement.ariaSort);

const select = $('#precision-recall select');
select.value = '2';
send(select, 'change');
result.charts = all('#precision-recall figure').filter(visible).map(one => one.querySelector('figcaption span').textContent);

const plot = all('#learning-curves .plot')[1], figure = plot.parentElement, box = plot.getBoundingClientRect();
const reading = () => [figure.querySelector('.at').textContent, figure.querySelector('.legend output').textContent];
result.before = reading();
send(plot, 'pointermove', view.PointerEvent, {clientX: box.left + 0.5 * box.width, clientY: box.top + 9});
result.pointed = reading();
send(plot, 'keydown', view.KeyboardEvent, {key: 'End'});
result.end = reading();
send(plot, 'keydown', view.KeyboardEvent, {key: 'Escape'});
result.after = reading();

for (const details of all('details')) details.open = true;
const edge = report.body.getBoundingClientRect().right + 1;
const outside = one => !one.closest('.scroll, nav') && one.getBoundingClientRect().right > edge;
result.outside = all('body *').filter(outside).map(one => one.outerHTML.slice(0, 80));
result.opened = root.scrollWidth;
