// The proxy as a frontend's page in Chromium uses it, by `fetch` and by the official SDK.
//
// Started by tests/browser/frontend.rs. Holds the publishable key alone.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';

import { installed, launch, noted, passed } from './chromium.mjs';

const { values: given } = parseArgs({
  options: {
    modules: { type: 'string' }, // the folder in which Playwright, esbuild and the SDK are installed
    site: { type: 'string' }, // the folder that both origins serve
    key: { type: 'string' }, // the publishable key
    listed: { type: 'string' }, // the origin that may read answers
    foreign: { type: 'string' }, // another one
    proxy: { type: 'string' },
    mock: { type: 'string' },
    'small-proxy': { type: 'string' }, // a proxy whose budget is --small-budget in 600 s, uncached
    'small-budget': { type: 'string' }
  }
});
const smallBudget = Number(given['small-budget']);

const received = async () => (await (await fetch(`${given.mock}/_mock/requests`)).json()).received;

const ask = (page, url, options = {}) =>
  page.evaluate(([url, key, options]) => ask(url, key, options), [url, given.key, options]);

/** Calls the SDK in the page: `call` is a function of the SDK, as text. */
const sdk = (page, apiHost, call) =>
  page.evaluate(
    ([apiHost, key, call]) => {
      const sdk = sdkAt(apiHost, key);
      return refused(() => new Function('sdk', `return ${call}`)(sdk));
    },
    [apiHost, given.key, call]
  );

const target = '/provider-deployments?limit=2';

const pages = async (page, wire) => {
  const first = await ask(page, wire.url + target);
  assert.equal(first.status, 200, JSON.stringify(first));
  assert.equal(first.body.items.length, 2);
  assert.equal(first.type, 'cors');
  assert.match(first.fields['ratelimit-policy'], /"environment";q=100;w=600/);
  assert.match(first.fields.ratelimit, /^"environment";r=\d+;t=\d+$/);
  assert.equal(first.fields['cache-status'], 'metorial-proxy; fwd=uri-miss; stored');
  assert.match(first.fields['x-request-id'], /^req_/);
  assert.deepEqual(wire.requests(), [`OPTIONS ${target}`, `GET ${target}`]);
  passed('a listed origin reads a page, with credentials, and how it stands with its limits');

  const again = await ask(page, wire.url + target);
  assert.match(again.fields['cache-status'], /^metorial-proxy; hit; ttl=\d$/);
  assert.ok(Number(again.fields.age) >= 0 && again.fields.etag, JSON.stringify(again.fields));
  assert.deepEqual(again.body, first.body);
  assert.deepEqual(wire.requests(), [`GET ${target}`]);
  // The page sees 200: its browser has the rest.
  assert.deepEqual(wire.answers(), ['204', '200', '304']);
  passed('what the browser has already is not sent again');
};

/** After all else, so that little is left of the five seconds that Chromium remembers a preflight for by itself. */
const preflights = async (page, wire) => {
  const first = await page.evaluate(url => performance.getEntriesByName(url)[0].responseEnd, wire.url + target);
  await page.waitForFunction(past => performance.now() > past, first + 5_500);
  for (let time = 0; time < 3; time += 1) assert.equal((await ask(page, wire.url + target)).status, 200);
  assert.deepEqual(wire.requests(), Array(3).fill(`GET ${target}`));
  passed('its preflight is remembered for longer than Chromium would by itself');
};

const bySdk = async (page, wire) => {
  const listed = await sdk(page, wire.url, 'sdk.servers.deployments.list({ limit: 20 })');
  assert.equal(listed.succeeded?.items.length, 20, JSON.stringify(listed));
  assert.equal(listed.succeeded.pagination.hasMoreAfter, true);
  const id = listed.succeeded.items[7].id;
  const next = await sdk(page, wire.url, `sdk.servers.deployments.list({ limit: 20, after: '${id}' })`);
  assert.equal(next.succeeded.items[0].id, listed.succeeded.items[8].id);
  const again = await sdk(page, wire.url, 'sdk.servers.deployments.list({ limit: 20 })');
  assert.deepEqual(again, listed);
  // The SDK asks the browser to validate what it has (`no-cache`), and Chromium validates its preflight with it.
  assert.deepEqual(wire.answers(), ['204', '200', '204', '200', '204', '304']);
  wire.requests();
  passed('the official SDK reads pages');

  const refusal = await sdk(page, wire.url, "sdk.servers.deployments.create({ name: 'mine' })");
  assert.equal(refusal.code, 'forbidden', JSON.stringify(refusal));
  assert.equal(refusal.response.status, 403);
  assert.match(refusal.hint, /methods = \["POST"\], path = "\/server-deployments"/);
  assert.deepEqual(wire.requests(), ['OPTIONS /server-deployments', 'POST /server-deployments']);
  passed('it is told by 403 which rule would allow a write');
};

const refusals = async (page, wire) => {
  const forbidden = await ask(page, `${wire.url}/agents`);
  assert.equal(forbidden.status, 403);
  assert.equal(forbidden.body.code, 'forbidden');
  assert.equal(forbidden.fields['x-request-id'], forbidden.body.request_id);
  assert.match(forbidden.fields['proxy-status'], /^metorial-proxy; /);
  assert.match(forbidden.fields.ratelimit, /^"environment";r=/);
  passed('a page reads a 403, by its fields too');

  const unknown = await ask(page, `${wire.url}/providers`, { headers: { Authorization: 'Bearer metorial_pk_no' } });
  assert.equal(unknown.status, 401, JSON.stringify(unknown));
  assert.equal(unknown.body.code, 'unauthorized');
  passed('and a 401, before anybody knows whose origin it is');
};

const limits = async page => {
  const wire = await noted(given['small-proxy']);
  for (let spent = 1; spent <= smallBudget; spent += 1) {
    const admitted = await ask(page, `${wire.url}/providers?search=${spent}`);
    assert.equal(admitted.status, 200, JSON.stringify(admitted));
    assert.ok(admitted.fields.ratelimit.startsWith(`"environment";r=${smallBudget - spent};t=`), admitted.fields.ratelimit);
  }
  const limited = await ask(page, `${wire.url}/providers`);
  assert.equal(limited.status, 429, JSON.stringify(limited));
  assert.equal(limited.body.code, 'rate_limit_exceeded');
  const wait = Number(limited.fields['retry-after']);
  assert.ok(590 <= wait && wait <= 610, limited.fields['retry-after']);
  assert.match(limited.fields.ratelimit, /^"environment";r=0;t=(59|60)\d$/);
  passed(`the request beyond ${smallBudget} is told by 429 to wait for ${wait} s`);

  await page.evaluate(() => noteSleeps());
  const bySdk = await sdk(page, wire.url, 'sdk.servers.deployments.list()');
  assert.equal(bySdk.code, 'rate_limit_exceeded', JSON.stringify(bySdk));
  const sleeps = await page.evaluate(() => sleeps);
  // The SDK adds three seconds to what it is told, and tries four times.
  assert.equal(sleeps.length, 3, `${sleeps}`);
  assert.ok(sleeps.every(slept => 593 <= slept && slept <= 613), `${sleeps}`);
  passed(`the SDK can read the wait, and would have slept: ${sleeps}`);
  wire.end();
};

const foreign = async (page, wire) => {
  const before = await received();
  assert.deepEqual(await ask(page, wire.url + target), { failed: 'TypeError' });
  assert.deepEqual(wire.requests(), [`OPTIONS ${target}`], 'after a refused preflight nothing follows');
  passed('another origin is refused with its preflight');

  // Nothing that a browser would ask leave for.
  const simple = `/provider-deployments?limit=2&key=${given.key}`;
  const readable = await page.evaluate(url => ask(url), wire.url + simple);
  assert.deepEqual(readable, { failed: 'TypeError' });
  assert.deepEqual(wire.requests(), [`GET ${simple}`]);
  assert.deepEqual(wire.answers(), ['403', '403']);
  passed('and without one too');

  const bySdk = await sdk(page, wire.url, 'sdk.servers.deployments.list()');
  assert.equal(bySdk.code, 'network_error', JSON.stringify(bySdk));
  assert.equal(await received(), before);
  passed('the API hears of none of it');

  // Where a page says that it wants to read nothing, its browser names no origin.
  const opaque = await page.evaluate(url => ask(url, null, { mode: 'no-cors' }), wire.url + simple);
  assert.deepEqual(opaque, { type: 'opaque', status: 0, fields: {}, body: '' });
  passed('and what it asks for without wanting to read it, it does not get to read');
};

fs.copyFileSync(path.join(import.meta.dirname, 'page.html'), path.join(given.site, 'index.html'));
await installed(given.modules)('esbuild').build({
  entryPoints: [path.join(import.meta.dirname, 'page.js')],
  bundle: true,
  format: 'esm',
  outdir: given.site,
  nodePaths: [path.resolve(given.modules, 'node_modules')]
});
const browser = await launch(given.modules);
const wire = await noted(given.proxy);
for (const [origin, checks] of [
  [given.listed, [pages, bySdk, refusals, limits, preflights]],
  [given.foreign, [foreign]]
]) {
  const context = await browser.newContext();
  const page = await context.newPage();
  const errors = [];
  page.on('pageerror', error => errors.push(String(error)));
  await page.goto(origin);
  await page.waitForFunction(() => window.sdkAt);
  for (const check of checks) {
    wire.requests();
    wire.answers();
    await check(page, wire);
  }
  assert.deepEqual(errors, []);
  await context.close();
}
await browser.close();
wire.end();
