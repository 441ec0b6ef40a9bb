// web/README.md names every script once.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

const WEB = new URL("../../web/", import.meta.url);

test("the map of web/ names every script", () => {
  const named = [...readFileSync(new URL("README.md", WEB), "utf-8").matchAll(/^\|[^|]*\| `(\w+\.js)` \|/gm)].map((match) => match[1]);
  assert.deepEqual(named.sort(), readdirSync(WEB).filter((name) => name.endsWith(".js")).sort());
});
