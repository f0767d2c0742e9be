#!/usr/bin/env python3
"""Holds a taught model against other programs: the same questions, greedily, here, in llama.cpp and in transformers.

    shoestring convert OUT/model --to taught.gguf --type f32
    shoestring serve OUT/model --port 8099 &
    bench/teach_rows.py 100 --seed 8 > fresh.csv                 # rows that nothing was trained on
    bench/same_answers.py fresh.csv --rows 100 --server http://127.0.0.1:8099 --gguf taught.gguf --folder OUT/model \\
        --prompt $'{prompt}\\n\\nEnd with #### and the final answer.'

Answers stand behind `####`, as the recipe of `teach` asks for them; numbers are compared as numbers. Needs llama-cpp-python for
--gguf, torch and transformers for --folder.
"""

import argparse
import csv
import json
import urllib.request


def right(text, answer):
    said = text.rsplit("####", 1)[-1].split("\n")[0].strip() if "####" in text else ""
    try:
        return float(said.replace(",", "")) == float(answer)
    except ValueError:
        return said.lower() == answer.lower()


def here(url, max_new):
    name = json.load(urllib.request.urlopen(url + "/v1/models"))["data"][0]["id"]

    def ask(prompt):
        body = {"model": name, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": max_new}
        request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]

    return ask


def llama(path, max_new, threads):
    import llama_cpp

    model = llama_cpp.Llama(path, n_ctx=1024, n_threads=threads, verbose=False)

    def ask(prompt):
        turns = [{"role": "user", "content": prompt}]
        return model.create_chat_completion(turns, temperature=0, max_tokens=max_new)["choices"][0]["message"]["content"]

    return ask


def transformers(path, max_new, threads):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def ask(prompt):
        turns = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        out = model.generate(ids, max_new_tokens=max_new, do_sample=False)
        return tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True)

    return ask


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("--prompt", default="{prompt}")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--max-new", type=int, default=106)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--server")
    parser.add_argument("--gguf")
    parser.add_argument("--folder")
    a = parser.parse_args()
    with open(a.table) as file:
        rows = list(csv.DictReader(file))[: a.rows]
    askers = {}
    if a.server:
        askers["here"] = here(a.server, a.max_new)
    if a.gguf:
        askers["llama.cpp"] = llama(a.gguf, a.max_new, a.threads)
    if a.folder:
        askers["transformers"] = transformers(a.folder, a.max_new, a.threads)
    texts = {name: [ask(a.prompt.replace("{prompt}", row["question"])) for row in rows] for name, ask in askers.items()}
    first = next(iter(texts.values()))
    for name, said in texts.items():
        hits = sum(right(text, row["answer"]) for text, row in zip(said, rows))
        same = sum(text.strip() == other.strip() for text, other in zip(said, first))
        print(f"{name}: {hits} of {len(rows)} right, {same} texts the same as the first's")


if __name__ == "__main__":
    main()
