<?php
// A backend behind the router, in PHP, without a package. JWKS and AUDIENCE are in the environment.
declare(strict_types=1);
require __DIR__ . '/verify.php';

header('content-type: application/json');
try {
    $c = verify($_SERVER, getenv('JWKS'), getenv('AUDIENCE'), getenv('CACHE'));
    echo json_encode(['stack' => 'php', 'organization' => $c['sub'], 'slug' => $c['slug'], 'generation' => $c['gen']]);
} catch (Throwable) {
    http_response_code(401);
    echo json_encode(['code' => 'invalid_tenant_token']);
}
