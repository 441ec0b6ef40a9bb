
import json
from pathlib import Path
from tests.comfy.test_contract import contract, SNAPSHOT, ROOT
from scripts.litegraph import inputs_of
def test_regen(part):
    infos={i["name"]: i for i in (n.GET_NODE_INFO_V1() for n in part("nodes").NODES)}
    snap={n: contract(i) for n,i in infos.items()}
    Path("/tmp/snap.json").write_text(json.dumps(snap, ensure_ascii=False))
    p=ROOT/"locales/en/nodeDefs.json"
    loc=json.loads(p.read_text(encoding="utf-8"))
    out={}
    for name, info in infos.items():
        old=loc.get(name,{})
        own={"display_name": info["display_name"], "description": info["description"], "inputs": {}, "outputs": {}}
        for key,(_,options) in inputs_of(info).items():
            own["inputs"][key]={"name": options.get("display_name", key), "tooltip": options["tooltip"]}
        for i,(key,tip) in enumerate(zip(info["output_name"], info["output_tooltips"])):
            own["outputs"][str(i)]={"name": key, **({"tooltip": tip} if tip else {})}
        if not own["inputs"]: own.pop("inputs")
        out[name]=own
    Path("/tmp/en.json").write_text(json.dumps({"old":loc,"new":out}, ensure_ascii=False))
