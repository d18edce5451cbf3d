// The official Node SDK, unchanged but for `apiHost`, against the proxy in front of the stand-in API.
//
// Started by tests/sdk_node.rs. Holds the publishable key alone. One line per check; the first that fails ends it.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import path from 'node:path';
import { parseArgs } from 'node:util';

const { values: given } = parseArgs({
  options: {
    sdk: { type: 'string' }, // the folder in which the SDK is installed
    key: { type: 'string' }, // the publishable key
    'secret-ends': { type: 'string' }, // the last four characters of the secret key
    proxy: { type: 'string' },
    mock: { type: 'string' },
    'tight-proxy': { type: 'string' }, // a proxy whose budget is --small-budget in 5 s, uncached
    'tight-mock': { type: 'string' },
    'distant-proxy': { type: 'string' }, // the same in 600 s, which its clients.max_retry_after of 1 s leaves out
    'distant-mock': { type: 'string' },
    'small-budget': { type: 'string' }
  }
});
const smallBudget = Number(given['small-budget']);
const { createMetorialCoreSDK } = createRequire(path.resolve(given.sdk, 'package.json'))('@metorial/core');

// A hang ends here, not with the patience of whoever runs the tests.
setTimeout(() => {
  console.error('nothing more happened');
  process.exit(1);
}, 150_000).unref();

const passed = check => console.log(`ok: ${check}`);

const deploymentsAt = (apiHost, apiKey = given.key) =>
  createMetorialCoreSDK({ apiKey, apiHost }).servers.deployments;

/** The SDK's error that `call` ends with. */
const refused = async call => {
  try {
    await call();
  } catch (error) {
    assert.ok(error.__isMetorialError, error);
    return error;
  }
  assert.fail('an error was expected, but the call succeeded');
};

/** Notes each answer below the SDK, and each sleep of the SDK. */
const watch = {
  answers: [],
  sleeps: [],
  really: true,

  begin() {
    const { fetch, setTimeout } = globalThis;
    globalThis.fetch = async (...request) => {
      const answer = await fetch(...request);
      this.answers.push({
        status: answer.status,
        retryAfter: answer.headers.get('Retry-After'),
        rateLimit: answer.headers.get('RateLimit'),
        requestId: answer.headers.get('X-Request-Id')
      });
      return answer;
    };
    globalThis.setTimeout = (callback, milliseconds, ...rest) => {
      // Node's own fetch may come here too: the line after ours says who called.
      const ofTheSdk = new Error().stack.split('\n')[2].includes('@metorial');
      if (ofTheSdk) this.sleeps.push(milliseconds / 1000);
      return setTimeout(callback, ofTheSdk && !this.really ? 0 : milliseconds, ...rest);
    };
  },

  reset(really) {
    Object.assign(this, { answers: [], sleeps: [], really });
  },

  refusals() {
    return this.answers.filter(answer => answer.status === 429);
  }
};

const pagesAndRights = async () => {
  const deployments = deploymentsAt(given.proxy);

  const ids = [];
  const sizes = [];
  let page;
  do {
    page = await deployments.list({ limit: 20, after: ids.at(-1) });
    ids.push(...page.items.map(item => item.id));
    sizes.push(page.items.length);
  } while (page.pagination.hasMoreAfter);
  assert.deepEqual(sizes, [20, 20, 17]);
  assert.equal(new Set(ids).size, 57);
  passed('57 deployments come page after page, each once');

  const again = await deployments.list({ limit: 20 });
  assert.deepEqual(again.items.map(item => item.id), ids.slice(0, 20));
  passed('the first page reads the same again');

  const found = await deployments.get(ids[41]);
  assert.equal(found.id, ids[41]);
  assert.ok(found.createdAt instanceof Date, found.createdAt);
  passed('one deployment comes by its id');

  const missing = await refused(() => deployments.get('sde_nobody'));
  assert.equal(missing.code, 'not_found');
  passed("the API's own 404 passes through");

  const told = await refused(() => deployments.create({ name: 'mine' }));
  assert.equal(told.response.status, 403);
  assert.equal(told.code, 'forbidden');
  assert.ok(told.hint.includes('methods = ["POST"], path = "/server-deployments"'), told.hint);
  assert.ok(told.response.request_id);
  assert.equal(told.response.request_id, watch.answers.at(-1).requestId);
  passed("a write is refused by 403, with the rule that would open it and the request's id");

  const unknown = await refused(() => deploymentsAt(given.proxy, 'metorial_pk_nobodyknowsthisone').list());
  assert.equal(unknown.response.status, 401);
  assert.equal(unknown.code, 'unauthorized');
  passed('an unknown publishable key is refused by 401');
};

/** Spends the small budget of one window. The error of the first request beyond it. */
const spend = async (deployments, wanted) => {
  let admitted = 1; // The one that found out what to ask for.
  const limited = await refused(async () => {
    for (; admitted <= smallBudget; admitted += 1) await deployments.get(wanted);
  });
  assert.equal(limited.code, 'rate_limit_exceeded');
  assert.equal(limited.response.status, 429);
  assert.deepEqual(limited.response['violated-policies'], ['environment']);
  assert.equal(limited.response.request_id, watch.answers.at(-1).requestId);
  assert.equal(admitted, smallBudget);
  passed(`a budget of ${smallBudget} admits ${admitted}, then comes 429`);
  return limited;
};

/** The Retry-After of each 429: whole seconds, at most the window and its guard against jitter, rounded up. */
const waits = () => {
  const told = watch.refusals().map(answer => answer.retryAfter);
  assert.ok(told.every(wait => /^[1-6]$/.test(wait)), `${told}`);
  return told.map(Number);
};

const shortWaitsAreSlept = async () => {
  const deployments = deploymentsAt(given['tight-proxy']);
  const wanted = (await deployments.list({ limit: 1 })).items[0].id;

  // The SDK tries four times; without really waiting in between all of them are refused.
  watch.reset(false);
  await spend(deployments, wanted);
  const told = waits();
  assert.equal(told.length, 4);
  assert.deepEqual(watch.sleeps, told.slice(0, 3).map(wait => wait + 3));
  passed(`the SDK would have slept for what Retry-After said, and 3 s: ${watch.sleeps}`);

  // And now it really sleeps, once, and then it is let through.
  watch.reset(true);
  const started = performance.now();
  for (let request = 0; request < 4 * smallBudget && watch.sleeps.length === 0; request += 1) {
    assert.equal((await deployments.get(wanted)).id, wanted);
  }
  const took = (performance.now() - started) / 1000;
  const [wait, ...more] = waits();
  assert.deepEqual(more, []);
  assert.deepEqual(watch.sleeps, [wait + 3]);
  // A timer of Node's may come up to a millisecond early.
  assert.ok(took > wait + 3 - 0.01, `${took}`);
  assert.equal(watch.answers.at(-1).status, 200);
  passed(`the SDK slept for ${wait + 3} s as told, and the next attempt succeeded`);
};

const longWaitsFailAtOnce = async () => {
  const deployments = deploymentsAt(given['distant-proxy']);
  const wanted = (await deployments.list({ limit: 1 })).items[0].id;

  watch.reset(false);
  const limited = await spend(deployments, wanted);
  const [refusal, ...more] = watch.refusals();
  assert.deepEqual(more, []);
  assert.deepEqual(watch.sleeps, []);
  assert.equal(refusal.retryAfter, null);
  const wait = limited.response.retry_after;
  assert.ok(590 <= wait && wait <= 610, `${wait}`);
  assert.match(refusal.rateLimit, /^"environment";r=0;t=(59|60)\d$/);
  passed(`of a wait beyond max_retry_after the SDK tells at once: ${wait} s, in the body`);
};

const whatTheApiSaw = async mock => {
  const text = await (await fetch(`${mock}/_mock/requests`)).text();
  const seen = JSON.parse(text);
  assert.ok(seen.requests.length > 0);
  assert.ok(!text.includes(given.key) && !text.includes(given.key.slice(-4)), 'the publishable key went upstream');
  for (const request of seen.requests) {
    assert.ok(JSON.stringify(request.headers).includes(given['secret-ends']), JSON.stringify(request));
    assert.equal(request.method, 'GET');
  }
  assert.equal(seen.refused, 0);
  passed(`the API saw ${seen.requests.length} requests, each with the secret key alone, and refused none`);
};

watch.begin();
await pagesAndRights();
await whatTheApiSaw(given.mock);
await shortWaitsAreSlept();
await whatTheApiSaw(given['tight-mock']);
await longWaitsFailAtOnce();
await whatTheApiSaw(given['distant-mock']);
