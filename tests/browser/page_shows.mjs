// What a page shows: each line given, in this order, with `…` for anything. Started by tests/browser/guide.rs.

import assert from 'node:assert/strict';
import { parseArgs } from 'node:util';

import { launch, watched } from './chromium.mjs';

const { values: given, positionals: lines } = parseArgs({
  allowPositionals: true,
  options: {
    modules: { type: 'string' }, // the folder in which Playwright is installed
    url: { type: 'string' }
  }
});

/** Whether `shown` has the lines; in the page, so nothing from around it. */
const hasAll = lines => {
  const shown = document.body.innerText.split('\n').map(line => line.trim());
  const found = wanted => {
    const parts = wanted.split('…').map(part => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
    const at = shown.findIndex(line => new RegExp(`^${parts.join('.*')}$`).test(line));
    shown.splice(0, at + 1);
    return at >= 0;
  };
  return lines.every(found);
};

const browser = await launch(given.modules);
const { page, faults } = await watched(await browser.newContext());
await page.goto(given.url);
try {
  await page.waitForFunction(hasAll, lines);
} catch {
  assert.fail(`the page shows no such lines:\n${lines.join('\n')}\nbut:\n${await page.innerText('body')}\n${faults}`);
}
assert.deepEqual(faults, []);
await browser.close();
