"""Serving a run: its adapters on one base model, behind OpenAI's chat API, on LitServe.

=====================  ====================================================================================
process                files
=====================  ====================================================================================
HTTP                   `app` (start and stop), `middleware` (keys and limits), `endpoints`, `responses`
worker                 `worker` (LitServe's loop), `scheduler` (which prompt is decoded when), `engine`,
                       `model_registry` (the models of a run), `detokenizer`
both                   `messages` between them, `requests` and `openai_schema` of the API, `metrics`
=====================  ====================================================================================
"""
