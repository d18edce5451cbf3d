// The example frontend in Chromium. Started by tests/browser/example.rs.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { parseArgs } from 'node:util';

import { accessible, launch, noted, passed, watched } from './chromium.mjs';

const { values: given } = parseArgs({
  options: {
    modules: { type: 'string' }, // the folder in which Playwright and axe are installed
    folder: { type: 'string' }, // the example's own
    page: { type: 'string' }, // where its dist/ is served
    key: { type: 'string' }, // the publishable key
    proxy: { type: 'string' },
    'small-proxy': { type: 'string' } // a proxy whose budget is one request
  }
});

const build = (url, key = given.key) =>
  execFileSync('node', ['build.js'], {
    cwd: given.folder,
    env: { ...process.env, METORIAL_URL: url, METORIAL_PUBLISHABLE_KEY: key }
  });

const rows = page => page.locator('#deployments li');
const shows = (page, count) =>
  page.waitForFunction(count => document.querySelectorAll('#deployments li').length === count, count);

const browser = await launch(given.modules);
const wire = await noted(given.proxy);

build(wire.url);
const { page, faults } = await watched(await browser.newContext());
await page.goto(given.page);
await shows(page, 20);
assert.match(await page.innerText('#limit'), /^\d+ requests left, more in \d+ s$/);
assert.match(await rows(page).nth(3).innerText(), /^.+\nsde_\w+$/);
passed('it lists deployments, and says what is left');

// With the keyboard alone.
const more = page.locator('#more');
await page.keyboard.press('Tab');
assert.ok(await more.evaluate(button => button === document.activeElement));
await page.keyboard.press('Enter');
await shows(page, 40);
await more.press('Enter');
await shows(page, 57);
assert.ok(await more.isDisabled());
const ids = await rows(page).locator('code').allInnerTexts();
assert.equal(new Set(ids).size, 57);
passed('more of them come by keyboard, each once, to the last');

wire.requests();
await page.reload();
await shows(page, 20);
assert.deepEqual(wire.requests(), ['GET /server-deployments?limit=20']);
passed('nothing is preflighted twice');

for (const colorScheme of ['light', 'dark']) {
  await page.emulateMedia({ colorScheme });
  await accessible(page, given.modules);
}
await page.setViewportSize({ width: 360, height: 640 });
const [content, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
assert.ok(content <= screen, `${content} of ${screen}`);
passed('it can be used by everybody, in light and dark, on a phone');
assert.deepEqual(faults, []);

build(given['small-proxy']);
await page.reload();
await shows(page, 20);
await more.press('Enter');
await page.waitForSelector('#fault:not([hidden])');
assert.match(await page.innerText('#fault'), /^rate_limit_exceeded: .+ — req_\w+$/s);
assert.equal(await rows(page).count(), 20);
assert.match(await page.innerText('#limit'), /^0 requests left, more in (59|60)\d s$/);
passed('where the limit is reached it says so, and what it had stays');

build(wire.url, 'metorial_pk_nobodyknowsthisone');
await page.reload();
await page.waitForSelector('#fault:not([hidden])');
assert.match(await page.innerText('#fault'), /^unauthorized: .+ — req_\w+$/s);
await accessible(page, given.modules);
passed('where its key is unknown it says so');

await browser.close();
wire.end();
