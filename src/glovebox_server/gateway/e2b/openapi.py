"""The OpenAPI page of the control plane, made from its route table and its pydantic models."""

from collections.abc import Sequence
from typing import Any

import pydantic
from pydantic import json_schema

from glovebox_server.gateway.e2b import api, models

_REF = "#/components/schemas/{model}"
_ALWAYS = (400, 401, 500)
_MEANINGS = {
    400: "The request can never work as it is",
    401: "The API key is missing or wrong",
    403: "This key may not do this",
    404: "There is no such thing, or it is not yours",
    409: "Not in this state",
    429: "A limit is reached",
    500: "A fault of the server",
    501: "Not served",
    503: "The host is full",
}


def page(routes: Sequence[api.Route]) -> dict[str, Any]:
    """The whole document."""
    found: list[type[pydantic.BaseModel]] = [models.Error]
    for route in routes:
        found += [model for model in (route.answer, route.body) if model is not None and model not in found]
    modes: list[tuple[type[pydantic.BaseModel], json_schema.JsonSchemaMode]] = [
        (model, "validation") for model in found
    ]
    references, definitions = json_schema.models_json_schema(modes, ref_template=_REF)
    schemas = {model: references[model, "validation"] for model in found}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Glovebox control plane", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-KEY"}},
        },
        "security": [{"ApiKey": []}],
    }


def _operation(route: api.Route, schemas: dict[type[pydantic.BaseModel], Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{route.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "parameters": _parameters(route),
        "responses": _responses(route, schemas),
    }
    if route.body is not None:
        content = {"application/json": {"schema": schemas[route.body]}}
        operation["requestBody"] = {"required": not route.body_optional, "content": content}
    return operation


def _responses(route: api.Route, schemas: dict[type[pydantic.BaseModel], Any]) -> dict[str, Any]:
    statuses = {*_ALWAYS, *route.errors, *((403,) if route.admin else ())}
    answers: dict[str, Any] = {}
    for success in (route.success, route.also):
        if success is None:
            continue
        if success >= 300:
            statuses.add(success)
            continue
        answers[str(success)] = {"description": "Done"}
        if route.answer is not None:
            answers[str(success)]["content"] = {"application/json": {"schema": schemas[route.answer]}}
    for status in sorted(statuses):
        content = {"application/json": {"schema": schemas[models.Error]}}
        answers[str(status)] = {"description": _MEANINGS[status], "content": content}
    return answers


def _parameters(route: api.Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for part in route.path.split("/")
        if part.startswith("{")
    ]
    if route.query is not None:
        schema = route.query.model_json_schema()
        required = schema.get("required", ())
        for name, field in schema["properties"].items():
            # "absent" is how a query says null.
            kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
            shown = kinds[0] if kinds else {key: value for key, value in field.items() if key != "title"}
            found.append({"name": name, "in": "query", "required": name in required, "schema": shown})
    if route.body is models.NewSandbox:
        key = {"type": "string", "pattern": "^[a-z0-9-]{1,255}$"}
        found.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": key})
    return found
