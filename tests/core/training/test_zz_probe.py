from tests.core.training.test_resume import *
import pytest
@pytest.mark.parametrize("lr",[2e-3,4e-3,1e-2])
def test_x(base_folder,tmp_path,lr):
    r=Run(base_folder,tmp_path,{**RISING,"learning_rate":lr,"max_steps":30}).go()
    print(lr,[(s,round(l,3)) for s,l in r.tuned.progress.eval_losses])
