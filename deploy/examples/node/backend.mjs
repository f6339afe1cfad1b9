// A backend behind the router, in Node, without a package. JWKS, AUDIENCE and PORT are in the environment.
import { createPublicKey, verify as signed } from "node:crypto";
import { createServer } from "node:http";

const { JWKS, AUDIENCE, PORT } = process.env;
let keys = new Map(), asked = 0;

async function key(kid) {
  if (!keys.has(kid) && Date.now() - asked > 2000) {
    asked = Date.now();
    const found = await (await fetch(JWKS, { signal: AbortSignal.timeout(2000) })).json();
    keys = new Map(found.keys.map((k) => [k.kid, createPublicKey({ key: k, format: "jwk" })]));
  }
  return keys.get(kid);
}

// The ten lines: claims of the request's token, or an error.
export async function verify(request) {
  const tokens = request.headersDistinct["x-tenant-token"] ?? [];
  const [head, claims, signature, more] = (tokens[0] ?? "").split(".");
  if (tokens.length !== 1 || tokens[0].length > 2048 || !signature || more !== undefined) throw new Error("token");
  const read = (part) => JSON.parse(Buffer.from(part, "base64url"));
  const { alg, kid } = read(head), ed25519 = alg === "EdDSA" && (await key(kid));
  if (!ed25519 || !signed(null, Buffer.from(`${head}.${claims}`), ed25519, Buffer.from(signature, "base64url"))) throw new Error("signature");
  const c = read(claims), now = Date.now() / 1000;
  if (c.iss !== "gmah-router" || c.aud !== AUDIENCE || typeof c.sub !== "string") throw new Error("audience");
  if (!(c.exp > now - 5 && c.iat < now + 5 && c.exp - c.iat <= 60)) throw new Error("time");
  if (c.host !== (request.headers.host ?? "").toLowerCase().replace(/:\d+$/, "")) throw new Error("host");
  return c;
}

createServer(async (request, response) => {
  const answer = (status, body) => response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  try {
    const { sub, slug, gen } = await verify(request);
    answer(200, { stack: "node", organization: sub, slug, generation: gen });
  } catch {
    answer(401, { code: "invalid_tenant_token" });
  }
}).listen(Number(PORT), "127.0.0.1");
