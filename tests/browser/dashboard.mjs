// The dashboard on the admin port, in Chromium, while real traffic passes. Started by tests/browser/dashboard.rs, which
// looks for secrets in what this leaves in --left.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';

import { accessible, launch, passed, watched } from './chromium.mjs';

const { values: given } = parseArgs({
  options: {
    modules: { type: 'string' }, // the folder in which Playwright and axe are installed
    key: { type: 'string' }, // the publishable key
    proxy: { type: 'string' }, // of one environment, whose budget is --limit
    admin: { type: 'string' },
    limit: { type: 'string' },
    client: { type: 'string' }, // the address of the client, as the balancer tells it
    left: { type: 'string' }, // a folder for what was seen
    screenshots: { type: 'string' } // a folder, where pictures are wanted
  }
});
const limit = Number(given.limit);

/** A request of a client behind the balancer; its status. */
const ask = async (target, key = given.key, options = {}) => {
  const headers = { Authorization: `Bearer ${key}`, 'X-Forwarded-For': given.client };
  const answer = await fetch(given.proxy + target, { ...options, headers });
  await answer.text();
  return answer.status;
};

const leave = (name, text) => fs.writeFileSync(path.join(given.left, name), text);
const html = page => page.evaluate(() => document.documentElement.outerHTML);

/** Waits until the figure that `selector` names has this value, and says what it has where it never does. */
const shows = async (page, selector, value) => {
  const figure = page.locator(`[data-figure=${selector}`).first();
  try {
    await page.waitForFunction(
      ([selector, value]) => document.querySelector(`[data-figure=${selector}`)?.dataset.value === value,
      [selector, String(value)],
      { timeout: 20_000 }
    );
  } catch {
    assert.fail(`${selector} is not ${value} but ${await figure.getAttribute('data-value')}`);
  }
};

/** How far the end of a line lies below the top of its chart: 3 at the top, 97 at the bottom. */
const end = line => Number(/ ([\d.]+)H\d+$/.exec(line)[1]);
const line = (page, chart) => page.locator(`${chart} .chart .line`).getAttribute('d');

const picture = async (page, name) => {
  if (given.screenshots) await page.screenshot({ path: path.join(given.screenshots, `${name}.png`) });
};

const figures = async page => {
  await page.waitForSelector('#link[data-state=live]');
  await shows(page, 'budget-left][data-environment=storefront]', limit);
  assert.equal(await page.locator('[data-figure=notices]').getAttribute('data-value'), '0');
  assert.equal(end(await line(page, '#environment-0')), 3);
  assert.equal(end(await line(page, '.traffic')), 97);
  await page.evaluate(() => (window.sameDocument = true));

  assert.equal(await ask('/providers?limit=1'), 200);
  await shows(page, 'budget-left][data-environment=storefront]', limit - 1);
  await shows(page, 'hit-ratio]', 0);
  for (let time = 0; time < 3; time += 1) assert.equal(await ask('/providers?limit=1'), 200);
  await shows(page, 'hit-ratio]', 0.75);
  await shows(page, 'budget-left][data-environment=storefront]', limit - 1);
  passed('a miss costs of the budget, hits do not, and both are shown without a reload');

  assert.equal(await ask('/agents'), 403);
  assert.equal(await ask('/providers', 'metorial_pk_nobodyknowsthisone'), 401);
  for (let n = 0; n < limit - 1; n += 1) assert.equal(await ask(`/providers?search=${n}`), 200);
  for (let n = 0; n < 4; n += 1) assert.equal(await ask(`/providers?cursor=${n}`), 429);
  await shows(page, 'refusals][data-code=forbidden]', 1);
  await shows(page, 'refusals][data-code=unauthorized]', 1);
  await shows(page, 'refusals][data-reason=environment][data-code=rate_limit_exceeded]', 4);
  await shows(page, 'answers][data-end="429"]', 4);
  await shows(page, 'budget-left][data-environment=storefront]', 0);
  assert.equal(await page.locator('[data-figure=notices]').getAttribute('data-value'), '1');
  assert.match(await page.title(), /needs a look/);
  passed('refusals are counted by their reason and code, and a spent budget is said at the top');

  await page.waitForFunction(() => document.querySelector('#environment-0 .chart .spent'));
  assert.equal(end(await line(page, '#environment-0')), 97);
  const heights = [...(await line(page, '.traffic')).matchAll(/ ([\d.]+)H/g)].map(([, height]) => Number(height));
  assert.ok(Math.min(...heights) < 97, `${heights}`);
  assert.ok(await page.evaluate(() => window.sameDocument));
  passed('the charts move with it');
};

/** Presses Tab until the element has the focus. */
const tabTo = async (page, selector) => {
  for (let pressed = 0; pressed < 60; pressed += 1) {
    await page.keyboard.press('Tab');
    if (await page.locator(selector).evaluate(element => element === document.activeElement)) return;
  }
  assert.fail(`${selector} is not reached by keyboard`);
};

const explain = async page => {
  await tabTo(page, '#explain-target');
  await page.keyboard.type('/providers?limit=20');
  await page.keyboard.press('Enter');
  await page.waitForSelector('#explanation');
  await shows(page, 'explain-decision]', 'allow');
  await shows(page, 'explain-layer][data-layer=authorize]', 'passed');

  await tabTo(page, '#explain-method');
  await page.keyboard.type('POST');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  await shows(page, 'explain-decision]', 'refuse');
  await shows(page, 'explain-code]', 'forbidden');
  assert.match(await page.innerText('#explanation'), /No rule of this proxy allows POST on this path/);
  await shows(page, 'refusals][data-code=forbidden]', 1);
  passed('by keyboard alone it explains why a request is allowed or refused, and counts none');
};

/** What the stream brings first. */
const streamed = async () => {
  const stream = await fetch(`${given.admin}/live`);
  let text = '';
  for await (const piece of stream.body.pipeThrough(new TextDecoderStream())) {
    text += piece;
    if (/\n\n/.test(text) && text.includes('data:')) break;
  }
  return text;
};

const everybody = async page => {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    await accessible(page, given.modules);
  }
  passed('axe finds nothing serious or critical, in light and dark');
  await page.setViewportSize({ width: 360, height: 740 });
  const [content, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(content <= screen, `${content} of ${screen}`);
  passed('a phone need not be scrolled sideways');
};

const pictures = async page => {
  for (const [name, colorScheme, width, height] of [
    ['light', 'light', 1200, 900],
    ['dark', 'dark', 1200, 900],
    ['phone', 'light', 390, 844]
  ]) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width, height });
    await page.goto(given.admin);
    await page.waitForSelector('#link[data-state=live]');
    await picture(page, name);
  }
};

const browser = await launch(given.modules);
const { page, faults } = await watched(await browser.newContext({ viewport: { width: 1200, height: 900 } }));
await page.goto(given.admin);
await figures(page);
leave('before.html', await html(page));
await explain(page);
await everybody(page);
await pictures(page);
leave('after.html', await html(page));
const stream = await streamed();
assert.ok(stream.includes('budget-left'), stream);
leave('stream', stream);
for (const name of ['live.json', 'status', 'metrics']) {
  leave(name, await (await fetch(`${given.admin}/${name}`)).text());
}
assert.deepEqual(faults, []);
passed('nothing is complained of');
await browser.close();
