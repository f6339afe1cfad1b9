<?php
// Claims of the request's token, or an exception. With sodium, which PHP brings along.
declare(strict_types=1);

function keys(string $jwks, string $cache, string $kid): array
{
    $known = is_file($cache) ? json_decode(file_get_contents($cache), true) : [];
    if (!isset($known[$kid]) && (!is_file($cache) || time() - filemtime($cache) > 2)) {
        $found = json_decode(file_get_contents($jwks, false, stream_context_create(['http' => ['timeout' => 2]])), true);
        $known = array_column($found['keys'], 'x', 'kid');
        file_put_contents($cache, json_encode($known), LOCK_EX);
    }
    return $known;
}

function bytes(string $part): string
{
    return sodium_base642bin($part, SODIUM_BASE64_VARIANT_URLSAFE_NO_PADDING);
}

// The ten lines.
function verify(array $server, string $jwks, string $audience, string $cache): array
{
    $token = $server['HTTP_X_TENANT_TOKEN'] ?? '';
    $parts = explode('.', $token);
    if (strlen($token) > 2048 || count($parts) !== 3) throw new Exception('token');
    $head = json_decode(bytes($parts[0]), true);
    $key = ($head['alg'] ?? '') === 'EdDSA' ? (keys($jwks, $cache, (string) ($head['kid'] ?? ''))[$head['kid'] ?? ''] ?? null) : null;
    if ($key === null || !sodium_crypto_sign_verify_detached(bytes($parts[2]), "$parts[0].$parts[1]", bytes($key))) throw new Exception('signature');
    $c = json_decode(bytes($parts[1]), true);
    if (($c['iss'] ?? '') !== 'gmah-router' || ($c['aud'] ?? '') !== $audience || !is_string($c['sub'] ?? null)) throw new Exception('audience');
    if (!($c['exp'] > time() - 5 && $c['iat'] < time() + 5 && $c['exp'] - $c['iat'] <= 60)) throw new Exception('time');
    if ($c['host'] !== preg_replace('/:\d+$/', '', strtolower($server['HTTP_HOST'] ?? ''))) throw new Exception('host');
    return $c;
}
